"""Rates and steps that are chosen by measuring a batch."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
from algorithms.nets import NETS, Problem, RandomDAG, apart, linear, problem
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from pccompile.algorithms import ALGORITHMS

SMALL = ("chain", "gated", "dag")
MEASURED = {
    "strict": {},
    "error-optimization": {},
    "incremental": {},
    "nudged": {},
    "langevin": {"temperature": 0.01, "burn_in": 20},
    "alm": {"penalty": "auto"},
}
BY_PATHS = ("fixed-prediction", "meta-pcn")
"""Algorithms whose schedule chooses by the length of paths alone."""
AUTO: dict[str, Any] = {"rate": "auto", "steps": "auto"}


def non_increasing(energy: Tensor) -> bool:
    return bool((energy.diff() <= 1e-9 * energy[0].abs()).all())


@pytest.mark.parametrize("name", SMALL)
def test_free_energy_of_strict_falls_at_every_step(name: str) -> None:
    p = problem(name)
    assert non_increasing(p.compile("strict", **AUTO).infer(p.x, target=p.target).free_energy)


@pytest.mark.parametrize("seed", range(3))
def test_strict_on_a_linear_network_falls_below_the_bound_and_diverges_above(seed: int) -> None:
    p = Problem(linear, (4, 5), seed)
    report = p.compile("strict").analyse(p.x, target=p.target, kinds=("spectrum",)).spectrum
    assert report is not None
    pc = p.compile("strict", steps=2000)
    assert non_increasing(pc.infer(p.x, target=p.target, rate=0.95 * report.rates["strict"]).free_energy)
    above = pc.infer(p.x, target=p.target, rate=1.05 * report.rates["strict"]).free_energy
    assert not above[-1] < 1e6 * above[0]


@pytest.mark.parametrize("stepper", ["heavy-ball", "nesterov", "heun"])
@pytest.mark.parametrize("name", SMALL)
def test_steppers_settle_at_automatic_rates(stepper: str, name: str) -> None:
    p = problem(name)
    assert p.compile("strict", stepper=stepper, **AUTO).infer(p.x, target=p.target).settles


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in NETS if n not in SMALL)])
def test_converged_alm_is_backpropagation(name: str) -> None:
    p = problem(name)
    report = p.compile("alm").analyse(p.x, target=p.target, kinds=("spectrum",)).spectrum
    assert report is not None
    assert report.condition < 18
    assert apart(p.gradients("alm", penalty="auto", **AUTO), p.backprop) < 1e-6


@pytest.mark.quick(3)
@pytest.mark.parametrize("algorithm", BY_PATHS)
@pytest.mark.parametrize("name", SMALL)
def test_automatic_fixed_prediction_is_backpropagation(name: str, algorithm: str) -> None:
    p = problem(name)
    for how in ({"rate": "auto"}, AUTO):
        for lowering in ("relax", "closed-form"):
            assert apart(p.gradients(algorithm, lowering=lowering, **how), p.backprop) < 1e-10
    assert apart(p.gradients(algorithm, steps="auto", rate=0.3), p.backprop) < 1e-3


class RandomNet(RandomDAG):
    """Of other widths of weights: some contract, some expand."""

    def __init__(self, seed: int) -> None:
        super().__init__(3 + seed % 6, seed)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight *= (0.5, 1.0, 2.0, 4.0)[seed % 4]


@pytest.mark.parametrize("algorithm", MEASURED)
@pytest.mark.parametrize("seed", [pytest.param(s, marks=pytest.mark.slow) if s >= 1 else s for s in range(50)])
def test_no_random_network_diverges(algorithm: str, seed: int) -> None:
    p = Problem(lambda: RandomNet(seed), (4, 5), seed)
    how = {k: v for k, v in AUTO.items() if k == "rate" or algorithm != "langevin"}
    pc = p.compile(algorithm, on_divergence="raise", **how, **MEASURED[algorithm])
    if algorithm == "incremental":
        before = float(p.loss(pc(p.x), p.target).detach())
        pc.train_step(p.x, p.target, torch.optim.SGD(pc.parameters(), 1e-4))
        assert float(p.loss(pc(p.x), p.target).detach()) < before
        return
    pc.loss(p.x, target=p.target).backward()
    assert all(q.grad.isfinite().all() for q in pc.parameters() if q.grad is not None)
    if algorithm in ("strict", "error-optimization"):
        assert pc.infer(p.x, target=p.target).settles


def test_what_was_chosen_is_kept_and_told() -> None:
    p = problem("gated")
    pc = p.compile("strict", **AUTO)
    assert "rate 0.1 is the default" in pc.source
    assert "steps=20, rate=0.1" in pc.source
    pc.loss(p.x, target=p.target).backward()
    first, told = pc.source, pc.notes
    rate, steps = pc.compiled.program.arguments["rate"], pc.compiled.program.arguments["steps"]
    assert isinstance(steps, int)
    assert f"steps={steps}, rate={rate}" in first
    assert "half of 2 / λmax(H), λmax(H) =" in first
    assert f"rate {rate:.4g} was chosen: half of 2 / λmax(H)" in told[0]
    assert str(pc.summary()).count("was chosen") == 2
    pc.loss(10 * p.x, target=-p.target).backward()
    assert pc.source == first


def test_the_chosen_numbers_are_those_that_run() -> None:
    p = problem("gated")
    pc = p.compile("strict", **AUTO)
    pc.loss(p.x, target=p.target).backward()
    chosen = {k: pc.compiled.program.arguments[k] for k in ("rate", "steps")}
    found = {n: q.grad for n, q in pc.named_parameters() if q.grad is not None}
    assert apart(found, p.gradients("strict", **chosen)) == 0


def test_without_a_loss_each_criterion_is_measured_on_its_own() -> None:
    p = problem("gated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pc = pccompile.compile(p.model, (p.x,), algorithm="error-optimization", rate="auto", check=False)
    pc.loss(p.x, target=p.target)
    own = pc.compiled.program.arguments["rate"]
    pc.loss_by(lambda output, target: 100 * p.loss(output, target), (p.x,), {}, p.target)
    assert pc.compiled.program.arguments["rate"] < 0.1 * own  # type: ignore[operator]
    pc.loss(p.x, target=p.target)
    assert pc.compiled.program.arguments["rate"] == own


def test_copies_keep_what_was_chosen() -> None:
    p = problem("gated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pc = pccompile.compile(p.model, (p.x,), algorithm="strict", rate="auto", check=False)
    pc.loss(p.x, target=p.target)
    for twin in (copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))):
        twin.loss(p.x, target=p.target)
        assert twin.compiled.program.arguments == pc.compiled.program.arguments


def test_the_model_and_the_random_stream_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3))
    x, target = torch.randn(8, 5), torch.randn(8, 3)
    runs = []
    for rate in ("auto", None):
        twin = copy.deepcopy(model)
        pc = pccompile.compile(twin, (x,), algorithm="strict", loss=nn.MSELoss(reduction="sum"), check=False, rate=rate)
        torch.manual_seed(1)
        value = pc.loss(x, target=target)
        runs.append((value, torch.rand(1), {k: v for k, v in twin.state_dict().items() if "running" in k}))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    for k, v in runs[0][2].items():
        assert torch.equal(v, runs[1][2][k])


def test_a_batch_that_would_diverge_is_inferred_at_a_rate_of_its_own() -> None:
    p = problem("gated")
    pc = p.compile("strict", rate="auto", steps=300)
    pc.loss(p.x, target=p.target).backward()
    before = pc.compiled.program.arguments["rate"]
    pc.zero_grad()
    with pytest.warns(RuntimeWarning, match=r"errors come to more than the loss .* chosen anew: rate .* λmax\(H\)"):
        pc.loss(p.x, target=1e9 * p.target).backward()
    assert all(q.grad.isfinite().all() for q in pc.parameters() if q.grad is not None)
    pc.loss(p.x, target=p.target)
    assert pc.compiled.program.arguments["rate"] < before  # type: ignore[operator]


def test_a_rate_that_lets_free_energy_rise_is_halved() -> None:
    """A saturated unit has no curvature at the forward pass, and much of it where the loss drives it."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h * h * h)

    torch.manual_seed(0)
    model, x = Steep().double(), torch.randn(3, 2, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=lambda o, t: 0.5 * (o - t).square().sum(),
                           check=False, **AUTO)  # fmt: skip
    trace = pc.infer(x, target=torch.full((3, 2), 1e3, dtype=torch.float64))
    assert trace.settles
    recorded = pc.prepare((x,), loss=pc.criterion, target=torch.zeros(3, 2, dtype=torch.float64))
    assert any("at which free energy goes from" in c.reason for c in recorded.options.choices)


@pytest.mark.parametrize("setting", ["rate", "steps"])
@pytest.mark.parametrize("algorithm", ["exact", "zil"])
def test_algorithms_without_steps_have_nothing_to_choose(algorithm: str, setting: str) -> None:
    with pytest.raises(pccompile.CompileError, match=f"{algorithm} has no {setting} that could be chosen") as e:
        problem("chain").compile(algorithm, **{setting: "auto"})
    assert "takes no steps of a size" in str(e.value)


@pytest.mark.parametrize("settings", [{"nudge": "auto"}, {"rate": "automatic"}, {"steps": 1.5}])
def test_what_cannot_be_automatic_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(pccompile.CompileError, match=f"{next(iter(settings))} is"):
        problem("chain").compile("nudged", **settings)


def test_adam_takes_numbers() -> None:
    with pytest.raises(pccompile.CompileError, match="adam takes steps of the size of the rate"):
        problem("chain").compile("strict", stepper="adam", rate="auto")


def test_without_hidden_vertices_any_rate_will_do() -> None:
    p = Problem(lambda: nn.Linear(5, 3), (4, 5))
    for algorithm, more in MEASURED.items():
        if algorithm != "incremental":
            assert p.gradients(algorithm, **AUTO, **{k: v for k, v in more.items() if k != "temperature"})


def test_each_algorithm_with_a_rate_can_choose_it() -> None:
    """But for one that adds energies to a model's: what is measured is the model's free energy."""
    own = {k: a for k, a in ALGORITHMS.items() if a.schedule.__module__.startswith("pccompile.")}
    for name, algorithm in own.items():
        if "rate" in algorithm.settings.__dataclass_fields__ and algorithm.mirrors is None:
            assert name in MEASURED or name in BY_PATHS


def test_the_report_is_json(tmp_path) -> None:
    p = problem("chain")
    pc = p.compile("strict", **AUTO)
    found = json.loads(pc.analyse(p.x, target=p.target).json())
    pc.loss(p.x, target=p.target)
    assert pc.compiled.program.arguments["rate"] == pytest.approx(found["spectrum"]["rates"]["strict"] / 2)


@pytest.mark.parametrize("cost", [{"precision": 0.01}, {"precision": 100.0}, {"energies": pccompile.energy("huber")}])
@pytest.mark.parametrize("algorithm", ["strict", "nudged", "error-optimization"])
def test_rates_are_not_measured_for_other_energies(algorithm: str, cost: dict[str, Any]) -> None:
    with pytest.raises(CompileError, match=f"{algorithm}: what is automatic is measured for half the squared error"):
        problem("gated").compile(algorithm, rate="auto", **cost)
