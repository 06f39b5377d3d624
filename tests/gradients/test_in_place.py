"""Changes in place where gradients are off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import distance, half_squares, seeded
from helpers.written import compare, linear, module, x64
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


def in_place_without_gradient(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    with torch.no_grad():
        h.clamp_(-1, 1).mul_(2)
        scale = h.sum()
    return self.b(h * h) * scale


def statistics_without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.norm.running_mean.mul_(0.9).add_(0.1 * x.mean(0))
        self.norm.running_var[0] = x.mean()
    return self.a(x) + self.norm.running_mean + self.norm.running_var


def part_without_gradient(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    with torch.no_grad():
        h[:, 0] = 1
    return self.b(h)


def through_detach(self: Any, x: Tensor) -> Tensor:
    h = self.a(x)
    h.detach()[:, 1:].mul_(2)
    return self.b(h)


@pytest.mark.parametrize(
    "forward",
    [in_place_without_gradient, statistics_without_gradient, part_without_gradient, through_detach],
)
def test_a_change_in_place_without_gradient_keeps_the_gradient_that_was_there(forward: Callable[..., Any]) -> None:
    make = module(forward, a=linear(), b=linear(), norm=nn.BatchNorm1d(4))
    x, y = x64(3, 4).requires_grad_(), x64(3, 4)
    y.data.copy_(x.data)
    y.requires_grad_()
    plain, pc = seeded(make), pccompile.compile(seeded(make), (x.detach(),))
    half_squares(pc(x)).backward()
    half_squares(plain(y)).backward()
    found = {"input": x.grad, **{k: p.grad for k, p in pc.named_parameters()}}
    assert distance(found, {"input": y.grad, **{k: p.grad for k, p in plain.named_parameters()}}) < 1e-12
    assert all(map(torch.allclose, pc.buffers(), plain.buffers()))


@pytest.mark.parametrize(
    "replaced",
    [lambda h: h.clone().zero_(), torch.bernoulli, lambda h: torch.linalg.matrix_power(h, 0)],
    ids=["zero_", "bernoulli", "matrix_power"],
)
@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "strict"])
def test_what_other_numbers_were_put_in_the_place_of_has_gradient_zero(
    replaced: Callable[[Tensor], Tensor], algorithm: str
) -> None:
    model = seeded(module(lambda self, x: replaced(self.a(x).sigmoid()), a=linear()))
    pc = pccompile.compile(model, (x64(4, 4),), algorithm=algorithm)
    if algorithm == "strict":
        pc.loss(x64(4, 4), target=x64(4, 4)).backward()
    else:
        half_squares(pc(x64(4, 4))).backward()
    for p in pc.parameters():
        assert p.grad is not None
        assert not p.grad.any()


def test_a_parameter_that_is_made_and_filled_inside() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scale = nn.Parameter(torch.empty(4, dtype=x.dtype))
        nn.init.constant_(scale, 1.5)
        return self.b(self.a(x) * scale.detach())

    assert compare(module(forward, a=linear(), b=linear()), x64(3, 4)) < 1e-12


def parameter_in_place(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.a.weight.clamp_(-1, 1)
    return self.b(self.a(x))


def test_a_parameter_that_is_changed_in_place_is_refused() -> None:
    with pytest.raises(CompileError, match="a parameter is changed in place"):
        pccompile.compile(seeded(module(parameter_in_place, a=linear(), b=linear())), (x64(3, 4),))
