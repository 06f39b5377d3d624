"""The zoo's models as the cases of a test: which of them, with what marks; built, and their inputs drawn."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import Case


def cases(table: dict[str, Case], slow: Set[str]) -> list[Any]:
    """Parameters of a test, with the marks of each case."""
    found = []
    for name, case in table.items():
        if case.refused:
            continue
        marks = [pytest.mark.slow] if case.slow or name in slow else []
        found.append(pytest.param(case, id=name, marks=marks))
    return found


def drawn(case: Case, dtype: torch.dtype) -> tuple[tuple[Any, ...], Tensor]:
    """Inputs that want gradients, and the target."""
    draw = torch.Generator().manual_seed(1)
    inputs, target = case.inputs(draw, dtype), case.target(draw, dtype)
    return tuple(x.requires_grad_(x.is_floating_point()) for x in inputs), target


def built(make: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype)
