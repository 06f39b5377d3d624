"""Derivatives that forward takes itself: they learn as in eager torch, and what a capture cannot hold is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap
from zoo.programs import Layers

import pccompile
from gradients.test_programs import compared, step
from pccompile import CompileError


class Net(Layers):
    """Layers, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.layer = nn.Conv1d(1, 2, 2), nn.BatchNorm1d(4), nn.LayerNorm(4)
        self.drop, self.table, self.run = nn.Dropout(0.5), nn.Embedding(5, 4), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def slope(y: Tensor, x: Tensor, create_graph: bool = True) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=create_graph)[0]


def asks_its_argument(m: Any, x: Tensor) -> Tensor:
    x.requires_grad_()
    return slope(m.last(m.first(x).tanh()), x).square().sum()


def part_without_gradient(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    with torch.no_grad():
        scale = m.second(h).abs().mean()
    return slope((m.last(h.tanh()) * scale), h).square().sum() + scale * h.sum()


def part_detached(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    s = slope(m.last(h.tanh()) * h.detach().sum(), h)
    return (s.detach() * h).sum() + s.square().sum() + h.data.sum() * m.last(h).sum()


def of_a_slope_without_graph(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    y = m.last(h.tanh()).square()
    (s,) = torch.autograd.grad(y.sum(), h, retain_graph=True)
    return (y.sum(-1, keepdim=True) * s).sum()


def through_norms(m: Any, x: Tensor) -> Tensor:
    h = m.norm(m.first(x)).relu()
    h = m.layer(h + F.gelu(m.conv(h[:, None]).sum(-1, keepdim=True)).sum(1))
    return slope(m.last(h.softmax(-1)), h).square().mean() + m.last(h).mean()


def through_attention(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    y = F.scaled_dot_product_attention(h[None], m.second(h)[None], h[None])
    return slope(y.sin(), h).square().sum()


def with_dropout(m: Any, x: Tensor) -> Tensor:
    h = m.drop(m.first(x)).tanh()
    return slope(m.last(m.drop(h)).square(), h).square().sum()


def changed_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.first(x) * 1.0
    h[:, 0] += 1.0
    h = h.clone().mul_(2.0)
    return slope(m.last(h.tanh()), h).square().sum()


def twice(m: Any, x: Tensor) -> Tensor:
    z = m.first(x)
    once = slope(m.last(z.tanh()).prod(-1), z)
    return slope(once.sin(), z).square().sum() + slope(slope(once, z), z).sum()


def of_unused(m: Any, x: Tensor) -> Tensor:
    h, other = m.first(x), m.second.weight * 1.0
    found = torch.autograd.grad(m.last(h).square().sum(), (h, other), create_graph=True, allow_unused=True)
    return found[0].sum() + (0.0 if found[1] is None else found[1].sum()) + other.sum()


def by_directions(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    (s,) = torch.autograd.grad(m.last(h.tanh()), h, grad_outputs=m.last(x @ m.first.weight.t()), create_graph=True)
    return s.square().sum()


def inner_transforms(m: Any, x: Tensor) -> Tensor:
    def energy(row: Tensor, scale: Tensor) -> Tensor:
        with torch.no_grad():
            still = row.sum()
        return (m.last(m.first(row).tanh()) * scale).square().sum() + still * row.detach().sum() * row.sum()

    return (
        vmap(grad(grad(lambda r, s: energy(r, s).sin(), argnums=1), argnums=0))(x, x.sum(-1)) * m.last(m.first(x)).sum()
    )


RUNS = (
    asks_its_argument, part_without_gradient, part_detached, of_a_slope_without_graph, through_norms, through_attention,
    with_dropout, changed_in_place, twice, of_unused, by_directions, inner_transforms,
)  # fmt: skip


@pytest.mark.quick(1)
@pytest.mark.parametrize("run", RUNS)
def test_a_derivative_within_forward_learns_as_in_eager_torch(run: Any) -> None:
    torch.manual_seed(0)
    model, x = Net(run).double(), torch.randn(5, 3).double()
    reference = copy.deepcopy(model)
    pc = pccompile.compile(model, (x.clone(),), capture="export")
    assert type(pc) is pccompile.PCModule
    for factor in (1.0, -2.0):
        given, own = ((factor * x).requires_grad_(run is not asks_its_argument) for _ in range(2))
        assert compared(step(pc, model, (given,), {}), step(reference, reference, (own,), {})) < 1e-9
    if run is not with_dropout:
        assert pc.checked is not None
        assert pc.checked.gradients > 0


@pytest.mark.slow
def test_each_algorithm_and_a_file_know_the_derivative() -> None:
    torch.manual_seed(0)
    model, x = Net(twice).double(), torch.randn(5, 3).double()
    for algorithm in ("fixed-prediction", "zil"):
        pc = pccompile.compile(
            model, (x,), algorithm=algorithm, **({} if algorithm == "zil" else {"rate": 1.0, "steps": 200})
        )
        model.zero_grad()
        pc(x).backward()
        found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(x).backward()
        for p, g in zip(model.parameters(), found, strict=True):
            assert (p.grad is None) == (g is None)
            if p.grad is not None:
                torch.testing.assert_close(g, p.grad, rtol=1e-6, atol=1e-8)
    assert "tanh_backward" in pc.source


def calls_backward(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    m.last(h).sum().backward(retain_graph=True)
    return m.last(h)


def under_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.first(x.float())
        return slope(m.last(h), h).square().sum()


def written_without_gradient(m: Any, x: Tensor) -> Tensor:
    h = m.first(x) * 1.0
    with torch.no_grad():
        h.mul_(2.0)
    return slope(m.last(h), h).square().sum()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (calls_backward, r"forward calls backward\(\)"),
        (under_autocast, "forward differentiates under autocast"),
        (written_without_gradient, "changes a value in place where gradients are off"),
    ],
)
def test_what_cannot_be_captured_is_refused(run: Any, words: str) -> None:
    model = Net(run)
    with pytest.raises(CompileError, match=words):
        pccompile.compile(model, (torch.randn(5, 3),), capture="export")
