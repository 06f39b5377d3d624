"""Energies other than half the squared error, and precisions: against finite differences and against loops by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

import pccompile
from algorithms.nets import Gated, Problem, apart, gap, linear, problem
from pccompile.ir import Energy
from pccompile.ops.energies import ENERGIES, energy

Density = Callable[[Tensor, Tensor], Tensor]
V, VHAT, STIFF = sp.symbols("v vhat stiff")
OWN = STIFF * (V - sp.tanh(VHAT)) ** 2 / 2 + sp.Max(0, V - VHAT - 0.1) ** 2 + sp.log(1 + sp.exp(V))
"""An expression of a user: no function of v − v̂ alone, with a kink and a parameter."""


def huber(v: Tensor, p: Tensor, delta: float) -> Tensor:
    size = (v - p).abs()
    return torch.where(size <= delta, size.square() / 2, delta * (size - delta / 2))


def own(v: Tensor, p: Tensor) -> Tensor:
    return 0.7 * (v - p.tanh()).square() / 2 + (v - p - 0.1).relu().square() + nn.functional.softplus(v)


CASES: dict[str, tuple[Energy, Density, Density]] = {
    "gaussian": (energy("gaussian", precision=1.7), lambda v, p: 0.85 * (v - p) ** 2 - math.log(1.7) / 2, lambda p: p),
    "laplace": (energy("laplace", b=0.8), lambda v, p: (v - p).abs() / 0.8, lambda p: p),
    "huber": (energy("huber", delta=0.05), lambda v, p: huber(v, p, 0.05), lambda p: p),
    "student-t": (
        energy("student-t", nu=2.5, sigma=0.6),
        lambda v, p: 1.75 * torch.log(1 + (v - p) ** 2 / (2.5 * 0.36)),
        lambda p: p,
    ),
    "von-mises": (energy("von-mises", kappa=1.3), lambda v, p: -1.3 * torch.cos(v - p), lambda p: p),
    "bernoulli": (
        energy("bernoulli", entropy=True),
        lambda v, p: nn.functional.softplus(p) - v * p + v * v.log() + (1 - v) * (1 - v).log(),
        torch.sigmoid,
    ),
    "categorical": (
        energy("categorical", entropy=True),
        lambda v, p: -v * p.log_softmax(-1) + v * v.log() - v,
        lambda p: p.softmax(-1),
    ),
    "poisson": (energy("poisson", entropy=True), lambda v, p: p.exp() - v * p + v * v.log() - v, torch.exp),
    "own": (energy(OWN, stiff=0.7), own, lambda p: p),
}
CLAMPED: dict[str, tuple[Energy, Density]] = {
    "bernoulli": (energy("bernoulli"), lambda v, p: nn.functional.softplus(p) - v * p),
    "categorical": (energy("categorical"), lambda v, p: -v * p.log_softmax(-1)),
    "poisson": (energy("poisson"), lambda v, p: p.exp() - v * p),
}
"""Without entropy."""
RATES = dict.fromkeys(CASES, 0.02) | {"poisson": 1e-3}
"""Exponentials of exponentials grow fast."""
LANGUAGE = {
    "softmax": lambda x: x.softmax(-1),
    "logsoftmax": lambda x: x.log_softmax(-1),
    "total": lambda x: x.sum(-1, keepdim=True),
    **{n: getattr(torch, n) for n in ("exp", "log", "sign", "abs", "sin", "cos", "tanh", "sigmoid", "log1p", "where")},
    "softplus": nn.functional.softplus,
}


def evaluate(equation: str, v: Tensor, p: Tensor) -> Tensor:
    """An equation of an energy, as Python reads it."""
    found: Tensor = eval(equation, {**LANGUAGE, "value": v, "prediction": p, "error": v - p, "zero": 0 * v})
    return found


def test_every_energy_is_held_to_a_reference() -> None:
    assert {*CASES} - {"own"} == {*ENERGIES}


SOME = [c if c in ("huber", "bernoulli", "own") else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
"""All cases, most of them in the long suite."""


@pytest.mark.parametrize("case", [*CASES, *(f"{n} clamped" for n in CLAMPED)])
def test_send_and_hold_are_finite_differences_of_the_energy(case: str) -> None:
    found, density = CLAMPED[case.split()[0]] if " " in case else CASES[case][:2]
    torch.manual_seed(0)
    v, p = torch.rand(6, 5, dtype=torch.float64) * 0.9 + 0.05, torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(evaluate(found.density, v, p).sum(), density(v, p).sum(), rtol=1e-12, atol=0)
    step = 1e-6
    for equation, sign, at in ((found.hold, 1, 0), (found.send, -1, 1)):
        slope = torch.zeros_like(v)
        for i in range(v.numel()):
            offset = torch.zeros(v.numel(), dtype=torch.float64)
            offset[i] = step
            moved = [(v + s * offset.view_as(v), p) if at == 0 else (v, p + s * offset.view_as(v)) for s in (1, -1)]
            up, down = (density(*m).sum() for m in moved)
            slope.view(-1)[i] = (up - down) / (2 * step)
        torch.testing.assert_close(evaluate(equation, v, p), sign * slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_values_begin_where_an_energy_is_least(case: str) -> None:
    found, density, rest = CASES[case]
    p = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(evaluate(found.rest, p, p), rest(p))
    if case == "own":  # without a rest of its own it begins at the prediction
        return
    for offset in (1e-4, -1e-4):
        assert bool((density(rest(p) + offset, p).sum() > density(rest(p), p).sum()).all())


# the algorithms against autograd on F = Σ E + L


class Loop:
    """Inference of the gated network by autograd over its values."""

    def __init__(self, p: Problem, model: nn.Module, density: Density, rest: Density) -> None:
        assert isinstance(model, Gated)
        self.p, self.model, self.density, self.rest = p, model, density, rest

    def predict(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The predictions of as many vertices as there are values, and of the next."""
        m, x = self.model, self.p.x
        fs = (
            lambda: torch.tanh(m.a(x)),
            lambda: torch.sigmoid(m.b(v[0])),
            lambda: v[0] * v[1],
            lambda: torch.tanh(m.c(v[2])),
            lambda: v[3] + v[0],
            lambda: m.o(v[4]),
        )
        return [f() for f in fs[: len(v) + 1]]

    def start(self) -> list[Tensor]:
        values: list[Tensor] = []
        with torch.no_grad():
            for _ in range(5):
                values.append(self.rest(self.predict(values)[-1]))
        return values

    def slopes(self, values: list[Tensor], nudge: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        """∂F/∂v and ∂F/∂θ."""
        free, parameters = [v.clone().requires_grad_() for v in values], list(self.model.parameters())
        *predictions, output = self.predict(free)
        energy = sum(self.density(v, p).sum() for v, p in zip(free, predictions, strict=True))
        found = torch.autograd.grad(energy + nudge * self.p.loss(output, self.p.target), [*free, *parameters])
        return list(found[:5]), list(found[5:])

    def relax(self, values: list[Tensor], steps: int, rate: float, nudge: float = 1.0) -> list[Tensor]:
        for _ in range(steps):
            forces, _ = self.slopes(values, nudge)
            values = [v - rate * g for v, g in zip(values, forces, strict=True)]
        return values


def by_hand(p: Problem, case: str) -> Loop:
    return Loop(p, copy.deepcopy(p.model), *CASES[case][1:])


def settled_values(p: Problem, pc: pccompile.PCModule) -> dict[str, Tensor]:
    """The hidden values where inference ends."""
    runtime = pc.prepare((p.x,), loss=p.loss, target=p.target)
    tables = pc.tables(runtime)
    _, context = pc.predict(runtime, tables, runtime.interface.bind((p.x,), {}), probe=True)
    values: dict[str, Tensor] = runtime.function("infer")(tables[0], context, [p.target])[1]
    return values


@pytest.mark.parametrize("case", CASES)
def test_strict_is_a_loop_by_hand(case: str) -> None:
    p = problem("gated")
    pc, loop = p.compile("strict", steps=7, rate=RATES[case], energies=CASES[case][0]), by_hand(p, case)
    values = loop.relax(loop.start(), 7, RATES[case])
    for ours, theirs in zip(settled_values(p, pc).values(), values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    pc.loss(p.x, target=p.target).backward()
    for parameter, gradient in zip(pc.parameters(), loop.slopes(values)[1], strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", SOME)
def test_nudged_is_two_loops_by_hand(case: str) -> None:
    p = problem("gated")
    pc = p.compile("nudged", steps=7, rate=RATES[case], nudge=0.3, energies=CASES[case][0])
    loop = by_hand(p, case)
    up, down = (loop.slopes(loop.relax(loop.start(), 7, RATES[case], s * 0.3), s * 0.3)[1] for s in (1, -1))
    pc.loss(p.x, target=p.target).backward()
    for parameter, a, b in zip(pc.parameters(), up, down, strict=True):
        torch.testing.assert_close(parameter.grad, (a - b) / 0.6, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("case", SOME)
def test_incremental_is_a_loop_by_hand(case: str) -> None:
    p = problem("gated")
    pc, loop = p.compile("incremental", steps=7, rate=RATES[case], energies=CASES[case][0]), by_hand(p, case)
    pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), RATES[case] ** 2))
    optimizer, values = torch.optim.SGD(loop.model.parameters(), RATES[case] ** 2), loop.start()
    for _ in range(7):
        forces, gradients = loop.slopes(values)
        values = [v - RATES[case] * g for v, g in zip(values, forces, strict=True)]
        for parameter, g in zip(loop.model.parameters(), gradients, strict=True):
            parameter.grad = g
        optimizer.step()
    for ours, theirs in zip(pc.parameters(), loop.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["huber", "bernoulli", "own"])
@pytest.mark.parametrize("stepper", ["heavy-ball", "heun"])
def test_steppers_follow_the_forces_of_energies(case: str, stepper: str) -> None:
    p = problem("gated")
    how = {"mass": 0.5} if stepper == "heavy-ball" else {}
    pc = p.compile("strict", steps=5, rate=0.02, stepper=stepper, energies=CASES[case][0], **how)
    loop = by_hand(p, case)
    values, velocities = loop.start(), [torch.zeros(())] * 5
    for _ in range(5):
        first = loop.slopes(values)[0]
        if stepper == "heavy-ball":
            velocities = [0.5 * u - 0.02 * g for u, g in zip(velocities, first, strict=True)]
            values = [v + u for v, u in zip(values, velocities, strict=True)]
        else:
            second = loop.slopes([v - 0.02 * g for v, g in zip(values, first, strict=True)])[0]
            values = [v - 0.01 * (g + h) for v, g, h in zip(values, first, second, strict=True)]
    for ours, theirs in zip(settled_values(p, pc).values(), values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


OF_ERROR = ("gaussian", "laplace", "huber", "student-t", "von-mises")


@pytest.mark.parametrize("case", OF_ERROR)
def test_alm_without_multipliers_is_strict_with_energies(case: str) -> None:
    p, how = problem("gated"), {"steps": 7, "rate": 0.02, "energies": CASES[case][0]}
    assert gap(p.gradients("alm", penalty=1.0, dual_rate=0.0, **how), p.gradients("strict", **how)) == 0


@pytest.mark.parametrize("case", ["gaussian", "student-t", "von-mises"])
def test_converged_error_optimization_is_converged_strict_with_energies(case: str) -> None:
    p = problem("gated")
    found = p.gradients("error-optimization", steps=1500, rate=0.1, energies=CASES[case][0])
    assert apart(found, p.gradients("strict", steps=4000, rate=0.1, energies=CASES[case][0])) < 1e-8


@pytest.mark.parametrize("case", ["huber", "bernoulli"])
def test_langevin_without_temperature_is_strict_with_energies(case: str) -> None:
    p = problem("gated")
    found = p.gradients("langevin", steps=1, burn_in=5, temperature=0.0, rate=0.02, energies=CASES[case][0])
    assert gap(found, p.gradients("strict", steps=6, rate=0.02, energies=CASES[case][0])) == 0


# limits


@pytest.mark.parametrize(
    "one",
    [
        energy("huber", delta=1e9),
        energy("student-t", nu=1e13),
        energy("gaussian", precision=1.0),
        energy((V - VHAT) ** 2 / 2),
    ],
    ids=["huber", "student-t", "gaussian", "own"],
)
@pytest.mark.parametrize("name", ["gated", "cnn"])
def test_the_limits_of_energies_are_half_the_squared_error(one: Energy, name: str) -> None:
    p, how = problem(name), {"steps": 7, "rate": 0.05}
    assert apart(p.gradients("strict", energies=one, **how), p.gradients("strict", **how)) < 1e-10


def test_a_table_leaves_the_other_vertices_as_they_are() -> None:
    p = problem("gated")
    pc = p.compile("strict", energies={"b": energy("huber"), "add": energy("laplace")})
    assert {v.name: v.energy.name for v in pc.compiled.pc.vertices if v.energy} == {
        "sigmoid": "huber",
        "add": "laplace",
    }


# precision


def test_strict_with_precisions_ends_in_the_minimum_of_the_weighted_energy() -> None:
    """F = Σ Π_i/2 ‖v_i − W_i v_{i−1}‖² + ½‖t − W v‖² is quadratic: dense linear algebra finds its minimum."""
    p = Problem(linear, (4, 5))
    first, second, last = (w.detach() for w in p.model.parameters())
    pc = p.compile("strict", steps=6000, rate=0.1, precision={"0": 0.3, "1": 2.5})
    hessian, identity = torch.zeros(8, 8, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    hessian[:4, :4] = 0.3 * identity + 2.5 * second.T @ second
    hessian[:4, 4:], hessian[4:, :4] = -2.5 * second.T, -2.5 * second
    hessian[4:, 4:] = 2.5 * identity + last.T @ last
    right = torch.cat([0.3 * p.x @ first.T, p.target @ last], 1)
    expected = torch.linalg.solve(hessian, right.T).T
    found = torch.cat([*settled_values(p, pc).values()], 1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    pc.loss(p.x, target=p.target).backward()
    gradient = -0.3 * (expected[:, :4] - p.x @ first.T).T @ p.x
    torch.testing.assert_close(next(pc.parameters()).grad, gradient, rtol=1e-9, atol=1e-12)


def test_one_number_is_the_precision_of_all_vertices() -> None:
    p, how = problem("gated"), {"steps": 7, "rate": 0.05}
    one = p.gradients("strict", precision=2.0, **how)
    assert apart(one, p.gradients("strict", energies=energy("gaussian", precision=2.0), **how)) == 0
    assert apart(p.gradients("strict", precision=1, **how), p.gradients("strict", **how)) < 1e-14


# what is shown


@pytest.mark.parametrize("case", CASES)
def test_free_energy_is_that_of_the_vertices_own_energies(case: str) -> None:
    p = problem("gated")
    trace = p.compile("strict", steps=4, rate=RATES[case], energies=CASES[case][0]).infer((p.x,), target=p.target)
    loop = by_hand(p, case)
    values = loop.start()
    for step in range(5):
        *predictions, output = loop.predict(values)
        energies = [loop.density(v, q).sum() for v, q in zip(values, predictions, strict=True)]
        expected = sum(energies) + p.loss(output, p.target)
        torch.testing.assert_close(trace.free_energy[step], expected.detach(), rtol=1e-9, atol=1e-11)
        for name, e in zip(("tanh", "sigmoid", "mul", "tanh_1", "add"), energies, strict=True):
            torch.testing.assert_close(trace.energy[name][step], e.detach(), rtol=1e-9, atol=1e-11)
        values = loop.relax(values, 1, RATES[case])


def test_the_file_says_which_energies_it_has() -> None:
    text = problem("gated").compile("strict", energies={"tanh": energy("huber", delta=0.5)}).compiled.source.text
    assert "E is huber(delta=0.5) at tanh." in text
    assert "s[tanh]" not in text.split("def infer")[0]
