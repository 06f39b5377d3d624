"""Derivatives that a compiled model does not have are refused; those of several outputs at once are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import Residual, Transformer, distance, gradients, half_squares, seeded
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import pccompile
from pccompile import CompileError, PCModule


def compiled() -> tuple[PCModule, Tensor]:
    x = torch.randn(3, 4, dtype=torch.float64)
    return pccompile.compile(seeded(Residual), (x,)), x


def create_graph(pc: PCModule, x: Tensor) -> Any:
    (first, *_) = torch.autograd.grad(half_squares(pc(x)), list(pc.parameters()), create_graph=True)
    return first.sum().backward()


def gradient_penalty(pc: PCModule, x: Tensor) -> Any:
    x.requires_grad_()
    (slope,) = torch.autograd.grad(pc(x).sum(), x, create_graph=True)
    return slope.square().sum().backward()


def hessian(pc: PCModule, x: Tensor) -> Any:
    return torch.autograd.functional.hessian(lambda v: pc(v).sum(), x)


def tangent_of_input(pc: PCModule, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return pc(forward_ad.make_dual(x, torch.ones_like(x)))


def functional(pc: PCModule, x: Tensor) -> Any:
    loss = lambda p: half_squares(torch.func.functional_call(pc, p, (x,)))  # noqa: E731
    return torch.func.grad(loss)(dict(pc.named_parameters()))


def each_sample(pc: PCModule, x: Tensor) -> Any:
    return torch.func.vmap(lambda row: pc(row[None]))(x)


def forward_transform(pc: PCModule, x: Tensor) -> Any:
    return torch.func.jvp(pc, (x,), (x,))


@pytest.mark.parametrize(
    "use, words",
    [
        (create_graph, "differentiated twice"),
        (gradient_penalty, "differentiated twice"),
        (hessian, "differentiated twice"),
        (tangent_of_input, "no forward-mode derivative"),
        (functional, "transformed by torch.func"),
        (each_sample, "transformed by torch.func"),
        (forward_transform, "transformed by torch.func"),
    ],
)
def test_what_there_is_no_derivative_for_is_refused(use: Callable[..., Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        use(*compiled())


@pytest.mark.parametrize("make, shape", [(Residual, (3, 4)), (Transformer, (2, 3, 4))])
def test_a_jacobian_by_batched_errors(make: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pc, plain = pccompile.compile(seeded(make), (x,)), seeded(make)
    units = torch.eye(plain(x).numel(), dtype=torch.float64).view(-1, *plain(x).shape)
    found, wanted = (torch.autograd.grad(m(x), x, units, is_grads_batched=True)[0] for m in (pc, plain))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_around_a_compiled_model(reentrant: bool) -> None:
    pc, x = compiled()
    wanted = gradients(pc, half_squares(pc(x)))
    half_squares(checkpoint(pc, x.requires_grad_(), use_reentrant=reentrant)).backward()
    assert distance({k: p.grad for k, p in pc.named_parameters()}, wanted) < 1e-12
