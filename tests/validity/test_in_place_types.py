"""Writes in place by operands of a wider type: the value keeps its own, as in eager torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pccompile

WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda d, x: d.mul_(x),
    "add": lambda d, x: d.add_(x),
    "several": lambda d, x: d.sub_(x).div_(x.abs() + 3).pow_(2),
    "part": lambda d, x: d[1:].mul_(x[1:]),
    "detached": lambda d, x: d.detach().mul_(x),
    "detached part": lambda d, x: d.detach()[:, 1:].mul_(x[:, 1:]),
    "copy": lambda d, x: d[:1].copy_(x[:1]),
    "limit": lambda d, x: d.clamp_(min=torch.tensor(0.1, dtype=torch.float64)),
    "condition": lambda d, x: d.add_(x > 0),
}


@pytest.mark.quick(4)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_into_keeps_its_type(write: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Narrow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            d = super().forward(x).float() * 1
            write(d, x * 1.5)
            return d * 2

    torch.manual_seed(0)
    model, x = Narrow(3, 3).double(), torch.randn(2, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    found = []
    for run in (model, pc):
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        output = run(leaf)
        output.square().sum().backward()
        found.append([output.detach(), leaf.grad, model.weight.grad, model.bias.grad])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
