"""Automatic rates keep their bound while weights move; rates that are numbers stay, and a warning says what holds."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from algorithms.nets import Problem, apart, problem
from random_networks import RandomNetwork, loss_of
from torch import Tensor, nn

import pccompile
from pccompile.runtime import automatic_rates, energy_alarm
from pccompile.runtime.displaced_batch import DisplacedBatch

AUTO: dict[str, Any] = {"rate": "auto", "steps": "auto"}
LEAVES = "leaves its bound"


class Two(nn.Module):
    """Two hidden layers, small enough for a dense Hessian."""

    def __init__(self, bend: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.bend = bend
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.bend(self.b(self.bend(self.a(x)))))


def largest(model: Any, x: Tensor, target: Tensor, nudge: float = 1.0) -> float:
    """λ_max of the Hessian of ½‖ε‖² + β/2 ‖target − output‖² in the hidden values at the forward pass, by autograd."""
    h = model.bend(model.a(x)).detach()
    k = model.bend(model.b(h)).detach()

    def energy(h1: Tensor, k1: Tensor) -> Tensor:
        hidden = h1 - h, k1 - model.bend(model.b(h1))
        return 0.5 * sum(e.square().sum() for e in hidden) + 0.5 * nudge * (target - model.c(k1)).square().sum()

    blocks = torch.autograd.functional.hessian(energy, (h, k))
    n = h.numel()
    rows = [torch.cat([b.reshape(n, n) for b in row], 1) for row in blocks]
    return float(torch.linalg.eigvalsh(torch.cat(rows)).max())


def two(seed: int = 0) -> Problem:
    return Problem(Two, (4, 3), seed)


def grow(model: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for q in model.parameters():
            q *= factor


def quietly(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What comes back, and the warnings that were told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = run()
    return result, [str(w.message) for w in told]


@pytest.mark.parametrize("algorithm", ["strict", "incremental", "nudged"])
def test_the_rate_keeps_its_bound_while_weights_grow(algorithm: str) -> None:
    """Against a dense Hessian."""
    p, nudge = two(), 0.01 if algorithm == "nudged" else 1.0
    pc = p.compile(algorithm, **AUTO)
    model: Any = pc.__dict__["model"]

    def run() -> list[float]:
        products = []
        for call in range(240):
            pc.loss(p.x, target=p.target)
            rate = pc.compiled.program.arguments["rate"]
            assert isinstance(rate, float)
            if call % 24 == 23:
                products.append(rate * largest(model, p.x, p.target, nudge))
            grow(model, 1.005)
        return products

    products, told = quietly(run)
    assert max(products) < 2
    assert told
    assert all(LEAVES in t and "chosen anew: " in t and "λmax(H) = " in t for t in told)


def test_what_is_chosen_anew_goes_as_far_along_the_flow() -> None:
    p = two()
    pc = p.compile("strict", **AUTO)
    pc.loss(p.x, target=p.target)
    before = dict(pc.compiled.program.arguments)
    grow(pc, 2.5)
    _, told = quietly(lambda: pc.loss(p.x, target=p.target))
    now = dict(pc.compiled.program.arguments)
    (line,) = told
    assert f"rate {before['rate']:.4g} → {now['rate']:.4g}" in line
    assert f"steps {before['steps']} → {now['steps']}" in line
    went, goes = (a["rate"] * a["steps"] for a in (before, now))  # type: ignore[operator]
    assert went <= goes < went + now["rate"]  # type: ignore[operator]


def test_a_jump_of_the_weights_is_caught_within_the_call() -> None:
    """Between two measurements: the gradients of that very call are those at the new rate."""
    p = two()
    pc = p.compile("strict", **AUTO)
    for _ in range(5):
        pc.loss(p.x, target=p.target)
    grow(pc, 4)
    pc.zero_grad()
    _, told = quietly(lambda: pc.loss(p.x, target=p.target).backward())
    assert len(told) == 1
    assert "errors come to more than the loss" in told[0]
    found = {n: q.grad.clone() for n, q in pc.named_parameters() if q.grad is not None}
    _, again = quietly(lambda: pc.loss(p.x, target=p.target))
    assert not again
    numbers = {k: pc.compiled.program.arguments[k] for k in ("rate", "steps")}
    twin = p.compile("strict", **numbers)
    twin.load_state_dict(pc.state_dict())
    twin.loss(p.x, target=p.target).backward()
    assert apart(found, {n: q.grad for n, q in twin.named_parameters() if q.grad is not None}) == 0


def test_a_batch_with_another_penalty_is_caught_though_its_rate_is_no_smaller() -> None:
    """A network whose second batch has a smaller S and a larger ‖A‖, so that the rate beside the first ρ is too large.

    Its gradients are those at the numbers that are chosen, the multipliers' step among them, which follows from ρ.
    """
    seed, settings = 52, {"algorithm": "alm", "steps": 400, "check": False}
    model, (loss, target) = RandomNetwork(seed).double(), loss_of(seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    (x, y), (x2, y2) = [(torch.randn(4, 5, generator=draw, dtype=torch.float64), target(draw)) for _ in range(2)]
    pc = pccompile.compile(model, (x,), loss=loss, rate="auto", penalty="auto", **settings)
    pc.train_step(x, y, torch.optim.Adam(pc.parameters(), 1e-2))
    first = dict(pc.compiled.program.arguments)
    pc.zero_grad()
    _, told = quietly(lambda: pc.loss(x2, target=y2).backward())
    (line,) = told
    assert "errors come to more than the loss" in line
    found = {n: q.grad.clone() for n, q in pc.named_parameters() if q.grad is not None}
    _, again = quietly(lambda: pc.loss(x2, target=y2))
    assert not again
    numbers = {k: pc.compiled.program.arguments[k] for k in ("rate", "penalty")}
    assert numbers["penalty"] < first["penalty"]  # type: ignore[operator]
    assert numbers["rate"] > first["rate"]  # type: ignore[operator]
    twin = pccompile.compile(model, (x,), loss=loss, **numbers, **settings)
    twin.zero_grad()
    twin.loss(x2, target=y2).backward()
    assert apart(found, {n: q.grad for n, q in twin.named_parameters() if q.grad is not None}) == 0


@pytest.mark.parametrize(("steps", "bend"), [(30, nn.Identity()), ("auto", torch.tanh)])
def test_a_rate_that_was_given_stays_and_one_warning_has_its_bound(steps: Any, bend: Any) -> None:
    p = Problem(lambda: Two(bend), (4, 3))
    pc = p.compile("strict", rate=0.5, steps=steps)
    assert not quietly(lambda: pc.loss(p.x, target=p.target).backward())[1]
    grow(pc, 2.5)
    before = dict(pc.compiled.program.arguments)
    told = [t for t in quietly(lambda: [pc.loss(p.x, target=p.target).backward() for _ in range(4)])[1] if LEAVES in t]
    assert len(told) == 1
    assert "rate 0.5 was given" in told[0]
    measured = float(told[0].split("λmax(H) = ")[1].split()[0])
    assert measured == pytest.approx(largest(pc.__dict__["model"], p.x, p.target), rel=0.1)
    assert pc.compiled.program.arguments == before


def test_a_rate_that_was_given_within_its_bound_is_not_blamed() -> None:
    """Whatever the loss is: here it falls far below nothing, and errors exceed what it began with."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rate in (0.5, "auto"):
        pc = pccompile.compile(model, (x,), algorithm="strict", rate=rate, steps=20, check=False,
                               loss=lambda o, t: (o - o.detach() * 0).sum() + t)  # fmt: skip
        first = torch.tensor(1e-3, dtype=torch.float64) - model(x).sum().detach()
        assert not quietly(lambda pc=pc, t=first: [pc.loss(x, target=t).backward() for _ in range(9)])[1]


def test_choices_are_the_same_in_every_run() -> None:
    def run() -> list[Any]:
        p = two()
        pc = p.compile("nudged", **AUTO)
        seen = []
        for _ in range(30):
            pc.loss(p.x, target=p.target).backward()
            seen.append(dict(pc.compiled.program.arguments))
            grow(pc, 1.05)
        return seen

    assert quietly(run) == quietly(run)


@pytest.mark.parametrize("algorithm", ["strict", "error-optimization", "nudged"])
def test_following_the_bound_costs_a_small_part_of_inference(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sweeps over the network: an inference step takes two, and each of a measurement is as slow as ten of them."""
    p = problem("chain")
    pc = p.compile(algorithm, **AUTO)
    pc.loss(p.x, target=p.target)
    sweeps, plain = [0], DisplacedBatch._run

    def counted(*args: Any, **kwargs: Any) -> Any:
        sweeps[0] += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(DisplacedBatch, "_run", counted)
    calls = 600
    for _ in range(calls):
        pc.loss(p.x, target=p.target)
    phases = 2 if algorithm == "nudged" else 1
    steps = pc.compiled.program.arguments["steps"]
    assert isinstance(steps, int)
    assert 0 < 10 * sweeps[0] <= 0.05 * calls * (2 * phases * steps + 2) + 10 * 60


def test_a_measurement_from_what_was_found_before_finds_it_again() -> None:
    p = two()
    pc = p.compile("strict", **AUTO)
    pc.loss(p.x, target=p.target)
    (held,) = pc._rates.held.values()
    for _ in range(20):
        grow(pc, 1.01)
        runtime = pc.prepare((p.x,), loss=pc.criterion, target=p.target)
        batch = DisplacedBatch(held.runtime.compiled, pc.tables(runtime), held.inputs, held.targets)
        few = automatic_rates.Spectrum(batch, starts=held.starts, most=automatic_rates.FOLLOWING)
        value = few.hessian().value
        held.starts = few.directions
        exact = largest(pc.__dict__["model"], p.x, p.target)
        assert 0.95 * exact <= value <= 1.001 * exact


def test_copies_go_on_with_what_was_chosen() -> None:
    p = two()
    pc = p.compile("strict", **AUTO)
    pc.loss(p.x, target=p.target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = copy.deepcopy(pc)
        plain = pccompile.compile(p.model, (p.x,), algorithm="strict", check=False, **AUTO)
        plain.loss(p.x, target=p.target)
        other = pickle.loads(pickle.dumps(plain))
    for q, was in ((twin, pc), (other, plain)):
        grow(q, 3)
        told = quietly(lambda q=q: [q.loss(p.x, target=p.target).backward() for _ in range(3)])[1]
        assert len(told) == 1
        assert q.compiled.program.arguments["rate"] < was.compiled.program.arguments["rate"]


def test_ignore_chooses_anew_without_a_word() -> None:
    p = two()
    pc = p.compile("strict", on_divergence="ignore", **AUTO)
    pc.loss(p.x, target=p.target)
    before = pc.compiled.program.arguments["rate"]
    grow(pc, 4)
    assert not quietly(lambda: [pc.loss(p.x, target=p.target).backward() for _ in range(2)])[1]
    assert pc.compiled.program.arguments["rate"] < before  # type: ignore[operator]


def test_numbers_that_are_none_are_told_and_not_chosen_for() -> None:
    p = two()
    pc = p.compile("strict", **AUTO)
    pc.loss(p.x, target=p.target)
    grow(pc, float("nan"))
    told = quietly(lambda: [pc.loss(p.x, target=p.target).backward() for _ in range(4)])[1]
    assert sum("no rate can be measured" in t for t in told) == 1
    strict = p.compile("strict", on_divergence="raise", **AUTO)
    strict.loss(p.x, target=p.target)
    grow(strict, float("nan"))
    with pytest.raises(pccompile.CompileError, match="no rate can be measured"):
        strict.loss(p.x, target=p.target)


@pytest.mark.slow
def test_a_step_that_is_compiled_as_a_whole_is_followed_only() -> None:
    p = two()
    pc = p.compile("strict", jit=True, **AUTO)
    pc.loss(p.x, target=p.target)
    before = pc.compiled.program.arguments["rate"]
    assert not energy_alarm.watched(pc._last)
    grow(pc, 4)
    (line,) = quietly(lambda: pc.loss(p.x, target=p.target))[1]
    assert "chosen anew" in line
    assert pc.compiled.program.arguments["rate"] < before  # type: ignore[operator]
