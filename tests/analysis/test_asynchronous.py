"""Networks run vertex by vertex: with a clock what the compiled program gives, without one the same end."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.nn.functional as F
from algorithms.nets import NETS, problem

import pccompile
from pccompile.analysis.asynchronous import Conditions
from pccompile.report.asynchronous import AsynchronousReport

SETTINGS: dict[str, dict[str, Any]] = {
    "fixed-prediction": {"steps": 4, "rate": 0.5, "lowering": "relax"},
    "strict": {"steps": 6, "rate": 0.2},
    "alm": {"steps": 6, "rate": 0.2, "penalty": 1.5, "dual_rate": 0.7},
}
CLOCK = Conditions("a clock", together=True)
HARD = (
    Conditions("random order"),
    Conditions("losses", loss=0.9),
    Conditions("all of them", delay=2, loss=0.5, rates=(0.5, 1.0)),
)


def run(name: str, algorithm: str, *conditions: Conditions, loss: Any = None, **settings: Any) -> AsynchronousReport:
    p = problem(name, **({"loss": loss} if loss else {}))
    pc = p.compile(algorithm, **settings)
    found = pc.analyse(p.x, target=p.target, kinds=("asynchronous",), conditions=conditions).asynchronous
    assert found is not None
    return found


@pytest.mark.parametrize("algorithm", SETTINGS)
@pytest.mark.parametrize(
    "name", ["chain", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gated", "dag", "cnn", "lstm"))]
)
def test_with_a_clock_the_vertices_give_what_the_program_gives(name: str, algorithm: str) -> None:
    """By the distance of both from the same end, and by ten times the steps too."""
    p, how = problem(name), SETTINGS[algorithm]
    (outcome,) = run(name, algorithm, CLOCK, **how).outcomes
    if algorithm == "strict":
        pc = p.compile(algorithm, **how)
        regime = pc.analyse(p.x, target=p.target, kinds=("regime",)).regime
        assert regime is not None
        assert outcome.after == pytest.approx(regime.distance, rel=1e-9)
        return
    for times, away in ((1, outcome.after), (10, outcome.longer)):
        found = p.gradients(algorithm, **{**how, "steps": times * how["steps"]})
        between = sum(float((found[k] - g).square().sum()) for k, g in p.backprop.items())
        whole = sum(float(g.square().sum()) for g in p.backprop.values())
        assert away == pytest.approx((between / whole) ** 0.5, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("one", HARD, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["gated", *(pytest.param(n, marks=pytest.mark.slow) for n in NETS if n != "gated")])
def test_fixed_prediction_ends_in_backpropagation_under_any_of_them(name: str, one: Conditions) -> None:
    (outcome,) = run(name, "fixed-prediction", one, steps=60, rate=0.9).outcomes
    assert outcome.longer < 1e-10
    assert (outcome.lost > 0) == (one.loss > 0)


def test_each_vertex_may_have_any_rate_below_2() -> None:
    (outcome,) = run("gated", "fixed-prediction", Conditions("rates", rates=(0.2, 1.9)), steps=60, rate=1.0).outcomes
    assert outcome.longer < 1e-10


@pytest.mark.parametrize("one", [HARD[0], HARD[2]], ids=lambda c: c.name)
def test_strict_ends_in_the_equilibrium_of_the_clock(one: Conditions) -> None:
    clocked, free = run("chain", "strict", CLOCK, one, steps=60, rate=0.2, loss=F.cross_entropy).outcomes
    assert clocked.longer < 1e-4
    assert free.longer < 1e-4
    assert free.after > 1.01 * clocked.after or one.loss == 0


def test_alm_ends_in_backpropagation_with_half_of_the_messages() -> None:
    half = Conditions("half", loss=0.5)
    (outcome,) = run("chain", "alm", half, penalty="auto", rate="auto", steps=100).outcomes
    assert outcome.longer < 1e-6


@pytest.mark.parametrize("algorithm", ["error-optimization", "zil"])
def test_others_are_refused(algorithm: str) -> None:
    with pytest.raises(pccompile.CompileError, match=f"{algorithm} cannot be run vertex by vertex"):
        run("chain", algorithm, CLOCK)


def test_the_report() -> None:
    p = problem("chain")
    found = p.compile("fixed-prediction", steps=6).analyse(p.x, target=p.target, kinds=("asynchronous",))
    assert "90 % of messages lost" in str(found)
    assert len(json.loads(found.json())["asynchronous"]["outcomes"]) == 5
