"""Incremental predictive coding: a loop by hand, its limits, and training steps of all algorithms."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from algorithms.nets import LARGE, Gated, Problem, apart, problem


def strict_by_hand(p: Problem, steps: int, rate: float, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Incremental PC of the gated network in a dozen lines of autograd."""
    assert isinstance(model, Gated)
    fs = (
        lambda v: torch.tanh(model.a(p.x)),
        lambda v: torch.sigmoid(model.b(v[0])),
        lambda v: v[0] * v[1],
        lambda v: torch.tanh(model.c(v[2])),
        lambda v: v[3] + v[0],
    )
    values: list[Tensor] = []
    with torch.no_grad():
        for f in fs:
            values.append(f(values))
    for _ in range(steps):
        free = [v.clone().requires_grad_() for v in values]
        energy = sum(0.5 * (v - f(free)).square().sum() for v, f in zip(free, fs, strict=True))
        parameters = list(model.parameters())
        found = torch.autograd.grad(energy + p.loss(model.o(free[4]), p.target), [*free, *parameters])
        values = [v - rate * g for v, g in zip(values, found, strict=False)]
        for parameter, g in zip(parameters, found[len(values) :], strict=True):
            parameter.grad = g
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_incremental_is_a_loop_by_hand(kind: str) -> None:
    make = {
        "sgd": lambda ps: torch.optim.SGD(ps, 0.05),
        "momentum": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=0.01),
        "adam": lambda ps: torch.optim.Adam(ps, 0.01),
    }[kind]
    p = problem("gated")
    pc, by_hand = p.compile("incremental", steps=9, rate=0.1), copy.deepcopy(p.model)
    ours, theirs = make(pc.parameters()), make(by_hand.parameters())
    for _ in range(2):
        pc.train_step(p.x, p.target, ours)
        strict_by_hand(p, 9, 0.1, theirs, by_hand)
    for a, b in zip(pc.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


class Derived(nn.Module):
    """Weights that are read through a cast, a norm and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        w = self.b.weight / self.b.weight.norm()
        g = F.linear(h, w.float().double(), self.b.bias)
        return F.linear(torch.cat([g, h], 1), torch.cat([self.o.weight[:2], self.o.weight[2:]]), self.o.bias)


def test_what_is_computed_of_weights_is_computed_anew_after_each_update() -> None:
    p = Problem(Derived, (4, 5))
    pc, r = p.compile("incremental", steps=7, rate=0.1), copy.deepcopy(p.model)
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.05, momentum=0.9) for m in (pc, r))
    pc.train_step(p.x, p.target, ours)
    assert isinstance(r, Derived)
    fs = (
        lambda v: torch.tanh(r.a(p.x)),
        lambda v: r.b.weight / r.b.weight.norm(),
        lambda v: F.linear(v[0], v[1].float().double(), r.b.bias),
        lambda v: torch.cat([v[2], v[0]], 1),
        lambda v: torch.cat([r.o.weight[:2], r.o.weight[2:]]),
    )
    values: list[Tensor] = []
    with torch.no_grad():
        for f in fs:
            values.append(f(values))
    for _ in range(7):
        free = [v.clone().requires_grad_() for v in values]
        energy = sum(0.5 * (v - f(free)).square().sum() for v, f in zip(free, fs, strict=True))
        loss = p.loss(F.linear(free[3], free[4], r.o.bias), p.target)
        found = torch.autograd.grad(energy + loss, [*free, *r.parameters()])
        values = [v - 0.1 * g for v, g in zip(values, found, strict=False)]
        for parameter, g in zip(r.parameters(), found[5:], strict=True):
            parameter.grad = g
        theirs.step()
    for a, b in zip(pc.parameters(), r.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LARGE)
def test_one_incremental_step_moves_the_readout_alone(name: str) -> None:
    p = problem(name)
    pc = p.compile("incremental", steps=1)
    pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), 0.1))
    before = dict(p.model.named_parameters())
    moved = {n for n, q in pc.named_parameters() if not torch.equal(q, before[n])}
    assert moved == {n for n in before if n.startswith(("o.", "out.", "4."))}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", LARGE)
def test_slow_incremental_learning_sums_the_gradients_of_strict(name: str) -> None:
    """(θ_T − θ_0) / α → −Σ_t g_θ(strict, t), with an error of O(α)."""
    p, steps = problem(name), 6
    summed = {n: torch.zeros_like(g) for n, g in p.backprop.items()}
    for t in range(steps):
        for n, g in p.gradients("strict", steps=t, rate=0.1).items():
            summed[n] += g
    distances = []
    for alpha in (1e-3, 1e-4):
        pc = p.compile("incremental", steps=steps, rate=0.1)
        pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), alpha))
        before = dict(p.model.named_parameters())
        found = {n: (before[n] - q).detach() / alpha for n, q in pc.named_parameters() if n in summed}
        distances.append(apart(found, summed))
    assert distances[1] < 0.2 * distances[0]
    assert distances[1] < 5e-2


def test_a_loss_cannot_be_sent_backwards_where_parameters_move_in_inference() -> None:
    p = problem("chain")
    with pytest.raises(pccompile.CompileError, match="train_step"):
        p.gradients("incremental")


@pytest.mark.parametrize("algorithm", ["exact", "strict", "zil"])
def test_a_training_step_of_other_algorithms_is_backward_and_one_step(algorithm: str) -> None:
    p = problem("gated")
    pc, expected = p.compile(algorithm), p.gradients(algorithm)
    pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), 0.1))
    before = dict(p.model.named_parameters())
    for n, q in pc.named_parameters():
        torch.testing.assert_close(q, before[n] - 0.1 * expected[n])
