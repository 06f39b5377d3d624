"""Temporal predictive coding: the Kalman filter of constant prior covariance, and a loop by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError, Temporal


class LinearSystem(nn.Module):
    """x ← A x + B u, y = C x."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("a", 0.4 * torch.randn(4, 4, dtype=torch.float64))
        self.register_buffer("b", torch.randn(4, 2, dtype=torch.float64))
        self.register_buffer("c", torch.randn(3, 4, dtype=torch.float64))

    def forward(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        state = state @ self.a.T + u @ self.b.T
        return state, state @ self.c.T


class Recurrent(nn.Module):
    """A tanh network."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.inner, self.seen = nn.Linear(5, 5), nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.own(state) + self.inner(u))
        return state, torch.sigmoid(self.seen(state))


def series(samples: int, observed: int = 3, length: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(samples, 4, dtype=torch.float64),
        torch.randn(length, samples, 2, dtype=torch.float64),
        torch.randn(length, samples, observed, dtype=torch.float64),
    )


@pytest.mark.parametrize("precision", [1.0, 2.5])
def test_a_linear_system_is_filtered_as_by_kalman_with_a_constant_prior_covariance(precision: float) -> None:
    model, (x0, us, ys) = LinearSystem(), series(3)
    tpc = Temporal(model, (x0, us[0]), precision=precision, steps=1500, rate=0.1, check=False)
    a, b, c = (t.numpy() for t in (model.a, model.b, model.c))
    prior = np.eye(4) / precision
    gain = prior @ c.T @ np.linalg.inv(c @ prior @ c.T + np.eye(3))
    x = x0.numpy()
    for u, y in zip(us, ys, strict=True):
        predicted = x @ a.T + u.numpy() @ b.T
        x = predicted + (y.numpy() - predicted @ c.T) @ gain.T
        tpc.step(u, target=y)
        assert np.abs(tpc.state.numpy() - x).max() < 1e-10


@pytest.mark.parametrize("stepper", ["euler", "heavy-ball"])
def test_a_network_infers_and_learns_as_a_loop_by_hand(stepper: str) -> None:
    torch.manual_seed(0)
    model = Recurrent().double()
    hand, (_, us, ys) = copy.deepcopy(model), series(4)
    state, precision, rate, mass = torch.randn(4, 5, dtype=torch.float64), 1.7, 0.05, 0.6
    how: dict[str, Any] = {"mass": mass} if stepper == "heavy-ball" else {}
    tpc = Temporal(model, (state, us[0]), precision=precision, steps=9, rate=rate, stepper=stepper, check=False, **how)
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.05) for m in (model, hand))
    for u, y in zip(us, ys, strict=True):
        tpc.step(u, target=y, optimizer=ours)
        predicted = torch.tanh(hand.own(state) + hand.inner(u))
        v, velocity = predicted.detach(), torch.zeros_like(state)
        for _ in range(9):
            v = v.requires_grad_()
            cost = 0.5 * (y - torch.sigmoid(hand.seen(v))).square().sum()
            cost = cost + 0.5 * precision * (v - predicted.detach()).square().sum()
            slope = torch.autograd.grad(cost, v)[0]
            velocity = (mass * velocity if how else 0) - rate * slope
            v = (v + velocity).detach()
        theirs.zero_grad()
        free_energy = 0.5 * (y - torch.sigmoid(hand.seen(v))).square().sum()
        free_energy = free_energy + 0.5 * precision * (v - predicted).square().sum()
        free_energy.backward()
        theirs.step()
        state = v
        torch.testing.assert_close(tpc.state, state, rtol=1e-9, atol=1e-11)
    for mine, other in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_the_state_is_kept_copied_and_reset() -> None:
    model, (x0, us, ys) = LinearSystem(), series(3)
    tpc = Temporal(model, (x0, us[0]), steps=5, check=False)
    tpc.step(us[0], target=ys[0])
    kept = copy.deepcopy(tpc.state_dict())
    assert torch.equal(kept["state"], tpc.state)
    twin = copy.deepcopy(tpc)
    tpc.step(us[1], target=ys[1])
    assert torch.equal(twin.state, kept["state"])
    twin.step(us[1], target=ys[1])
    assert torch.equal(twin.state, tpc.state)
    later = tpc.state.clone()
    tpc.load_state_dict(kept)
    tpc.step(us[1], target=ys[1])
    assert torch.equal(tpc.state, later)
    torch.testing.assert_close(tpc(us[2]), model(later, us[2])[1])
    tpc.reset_state()
    assert torch.equal(tpc.state, x0)
    with pytest.raises(CompileError, match="the state has 3 samples, and an input has 2"):
        tpc.step(us[0][:2], target=ys[0][:2])
    tpc.reset_state(x0[:2])
    tpc.step(us[0][:2], target=ys[0][:2])
    torch.testing.assert_close(tpc.state, kept["state"][:2], rtol=1e-12, atol=1e-13)


class Peeking(LinearSystem):
    """An observation that reads the input, too."""

    def forward(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        new, seen = super().forward(state, u)
        return new, seen + u.sum(1, keepdim=True)


class Single(LinearSystem):
    """No observation."""

    def forward(self, state: Tensor, u: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(state, u)[0]


class Shrinking(LinearSystem):
    """A new state of another shape."""

    def forward(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        new = 2 * super().forward(state, u)[0][:, :3]
        return new, torch.tanh(new)


REFUSED = [
    (Peeking, "the observation reads u beside the new state"),
    (Single, "a model of one time step has two results"),
    (Shrinking, "a sample of the state is [4], and the new state is"),
]


@pytest.mark.parametrize("kind, what", REFUSED)
def test_models_of_another_form_are_refused(kind: type[nn.Module], what: str) -> None:
    x0, us, _ = series(3)
    with pytest.raises(CompileError) as caught:
        Temporal(kind(), (x0, us[0]), check=False)
    assert what in str(caught.value)


def test_a_vertex_for_each_output() -> None:
    pc = pccompile.compile(Recurrent(), (torch.zeros(2, 5), torch.zeros(2, 2)), granularity="output", check=False)
    assert [len(v.prediction) > 1 for v in pc.graph.vertices] == [True, True, False]
    assert len(pc.graph.latent) == 1
