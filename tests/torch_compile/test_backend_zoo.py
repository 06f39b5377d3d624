"""Every trap of the zoo through `torch.compile(backend="pccompile")`: what plain autograd gives, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.cases import built, drawn
from helpers.models import distance
from torch import Tensor
from zoo import TRAPS, Case
from zoo.reference import _writable

from pccompile import CompileError
from pccompile.runtime.torch_compile import backend

REFUSED = {
    "vmap_of_grad": "cannot capture",
    "inner_gradient": "not have been used in the graph",  # torch's own words: two results of one piece
}


pytestmark = pytest.mark.usefixtures("fresh_dynamo", "silent_logs")


def step(case: Case, call: Callable[..., Any], module: torch.nn.Module) -> dict[str, Tensor | None]:
    inputs, target = drawn(case, torch.float64)
    torch.manual_seed(7)
    value = case.loss(call(*map(_writable, inputs)), target)
    value.backward()
    found: dict[str, Tensor | None] = {name: p.grad for name, p in module.named_parameters()}
    found |= {f"input {i}": x.grad for i, x in enumerate(inputs) if x.is_floating_point()}
    found |= {f"buffer {name}": b.detach() for name, b in module.named_buffers() if b.is_floating_point()}
    return {k: v if v is None else v.nan_to_num() for k, v in {**found, "loss": value.detach()}.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAPS)
def test_pieces_equal_autograd(name: str) -> None:
    case = TRAPS[name]
    module = built(case.build, torch.float64)
    compiled = torch.compile(module, backend=backend)
    if name in REFUSED:
        with pytest.raises((CompileError, RuntimeError), match=REFUSED[name]):
            step(case, compiled, module)
        return
    plain = built(case.oracle or case.build, torch.float64)
    found, expected = step(case, compiled, module), step(case, plain, plain)
    if (
        name == "cond"
    ):  # eager torch.cond gives zeros to the branch that is not taken, a program as Python's `if` nothing
        expected = {k: v if v is None or v.any() else None for k, v in expected.items()}
    assert distance(found, expected, floor=1e-3) < 1e-9
