"""Steps of Heun's rule with error control, against the same rule by hand and the flow that they follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pccompile
from algorithms.nets import Problem, apart, linear, problem
from pccompile import CompileError


def by_hand(p: Problem, steps: int, rate: float, accuracy: float) -> tuple[Tensor, Tensor, Tensor]:
    """The values of a linear chain, the time that each sample has reached, and its step, by the formulas."""
    w1, w2, w3 = (w.detach() for w in p.model.parameters())

    def force(v: Tensor) -> Tensor:
        a, b = v[:, :4], v[:, 4:]
        first, second, last = a - p.x @ w1.T, b - a @ w2.T, p.target - b @ w3.T
        return torch.cat([second @ w2 - first, last @ w3 - second], 1)

    a = p.x @ w1.T
    v = torch.cat([a, a @ w2.T], 1)
    size, time = torch.full((len(v), 1), rate, dtype=torch.float64), torch.zeros(len(v), 1).double()
    for _ in range(steps):
        k1 = force(v)
        k2 = force(v + size * k1)
        error = (size / 2 * (k2 - k1)).norm(dim=1, keepdim=True)
        excess = error / (accuracy + accuracy * v.norm(dim=1, keepdim=True))
        taken = excess <= 1
        v, time = torch.where(taken, v + size / 2 * (k1 + k2), v), time + torch.where(taken, size, 0)
        size = size * (0.9 / (excess + 1e-12).sqrt()).clip(0.2, 5)
    return v, time, size


def settled_values(p: Problem, **settings: object) -> Tensor:
    trace = p.compile("strict", stepper="adaptive", **settings).infer(p.x, target=p.target)
    hidden = list(trace.values)[:2]
    return torch.cat([trace.values[k][-1] for k in hidden], 1)


@pytest.mark.parametrize("rate", [0.05, 5.0])
def test_values_are_those_of_the_rule(rate: float) -> None:
    p = Problem(linear, (4, 5))
    expected, _, sizes = by_hand(p, 12, rate, 1e-3)
    assert torch.allclose(settled_values(p, steps=12, rate=rate, accuracy=1e-3), expected, rtol=0, atol=1e-10)
    assert len(set(sizes.flatten().tolist())) == 4


def test_the_rule_follows_the_flow_to_its_accuracy() -> None:
    """v(t) of dv/dt = −∂F/∂v is v* + exp(−Ht)(v(0) − v*); each sample is compared at the time that it has reached.

    The error of a step is of order 3 and errors of steps are held at `accuracy` of order 2, so a hundredth of that
    leaves about a thousandth.
    """
    p = Problem(linear, (4, 5))
    w1, w2, w3 = (w.detach() for w in p.model.parameters())
    eye = torch.eye(4, dtype=torch.float64)
    hessian = torch.cat([torch.cat([eye + w2.T @ w2, -w2.T], 1), torch.cat([-w2, eye + w3.T @ w3], 1)])
    a = p.x @ w1.T
    start, drive = torch.cat([a, a @ w2.T], 1), torch.cat([a, p.target @ w3], 1)
    end = torch.linalg.solve(hessian, drive.T).T
    worst = []
    for accuracy, steps in ((1e-3, 8), (1e-5, 80)):
        v, time, _ = by_hand(p, steps, 0.01, accuracy)
        assert torch.allclose(v, settled_values(p, steps=steps, rate=0.01, accuracy=accuracy), rtol=0, atol=1e-9)
        exact = torch.stack([e + torch.matrix_exp(-hessian * t) @ (s - e) for e, s, t in zip(end, start, time.flatten(),
                                                                                          strict=True)])  # fmt: skip
        worst.append(float((v - exact).norm() / (exact - start).norm()))
    assert worst[0] < 2e-2
    assert worst[1] < 0.05 * worst[0]


@pytest.mark.parametrize("name", ["gated", "cnn"])
def test_a_rate_far_beyond_the_bound_settles(name: str) -> None:
    p = problem(name)
    pc = p.compile("strict", stepper="adaptive", steps=60, rate=50.0, accuracy=1e-2)
    trace = pc.infer(p.x, target=p.target)
    assert trace.settles
    assert float(trace.free_energy[-1]) < 0.9 * float(trace.free_energy[0])
    start = p.compile("strict", steps=1).infer(p.x, target=p.target).free_energy[0]
    assert float(trace.free_energy[0]) == pytest.approx(float(start))
    assert all(g.isfinite().all() for g in p.gradients("strict", stepper="adaptive", steps=60, rate=50.0).values())


def test_it_ends_in_the_equilibrium() -> None:
    p = Problem(linear, (4, 5))
    found = p.gradients("strict", stepper="adaptive", steps=200, rate=0.1, accuracy=1e-4)
    assert apart(found, p.gradients("strict", steps=4000, rate=0.2)) < 1e-2


def test_adding_up_over_all_vertices_is_not_local() -> None:
    p = problem("chain")
    assert not p.compile("strict", stepper="adaptive").locality().found.local
    assert p.compile("strict", stepper="heun").locality().found.local


def test_a_table_of_rates_is_refused() -> None:
    with pytest.raises(CompileError, match="adaptive steps begin with one rate"):
        problem("chain").compile("strict", stepper="adaptive", rate={"tanh": 0.1})


def test_vertices_with_other_samples_are_refused() -> None:
    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = torch.nn.Linear(5, 6), torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)).T)))

    torch.manual_seed(0)
    with pytest.raises(CompileError, match="adaptive steps are chosen sample by sample"):
        pccompile.compile(Rows(), (torch.randn(4, 5),), algorithm="strict", stepper="adaptive", check=False,
                          loss=torch.nn.MSELoss(reduction="sum"), dynamic_shapes=({},))  # fmt: skip
