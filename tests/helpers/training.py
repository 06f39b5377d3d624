"""What the tests of the compiled module share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pccompile
from helpers.models import seeded
from pccompile import PCModule

ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fixed-prediction": {"algorithm": "fixed-prediction", "steps": 400},
    "strict": {"algorithm": "strict", "outside_loss": "linearise"},
}


def data(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def grads(module: nn.Module) -> dict[str, Tensor | None]:
    """Copies of what is in `.grad`."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def pair(make: Callable[[], nn.Module], *x: Tensor, **how: Any) -> tuple[nn.Module, PCModule]:
    """A model, and an equal one in predictive-coding form."""
    return seeded(make, x[0].dtype), pccompile.compile(seeded(make, x[0].dtype), x, **how)


def programs(pc: PCModule) -> int:
    """How many programs have been compiled."""
    return sum(len(t.programs) for t in pc._cache.captures)
