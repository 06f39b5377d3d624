"""How far inference goes, and whether its gradients are those of backpropagation or of the equilibrium."""

from __future__ import annotations

import json
import math

import pytest
import torch
from algorithms.nets import Problem, apart, linear, problem
from torch import nn

import pccompile
from pccompile.report.regime import RegimeReport

SMALL = ("chain", "gated", "dag")


def regime(p: Problem, algorithm: str, **settings: object) -> RegimeReport:
    found = p.compile(algorithm, **settings).analyse(p.x, target=p.target, kinds=("regime",)).regime
    assert found is not None
    return found


def bound(p: Problem, method: str) -> float:
    found = p.compile("strict").analyse(p.x, target=p.target, kinds=("spectrum",)).spectrum
    assert found is not None
    return found.rates[method]


def deep() -> nn.Module:
    """Ten layers through which signals neither vanish nor grow."""
    model = nn.Sequential(*(layer for _ in range(9) for layer in (nn.Linear(5, 5), nn.Tanh())), nn.Linear(5, 3))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
    return model


def at(p: Problem, q: float) -> RegimeReport:
    """Error optimization in five steps with rate · steps · λ_max = q."""
    found = regime(p, "error-optimization", steps=5, rate=q / 5 * bound(p, "error-optimization") / 2)
    assert found.q == pytest.approx(q)
    return found


@pytest.mark.parametrize("p", [Problem(deep, (4, 5)), problem("chain")], ids=["deep", "chain"])
def test_at_a_small_q_error_optimization_points_where_backpropagation_does(p: Problem) -> None:
    found = at(p, 0.01)
    assert min(c.cosine_to_backprop for c in found.parameters) >= 0.9999
    assert any("hardly begun" in n for n in found.notes)


@pytest.mark.parametrize("name", SMALL)
def test_the_angle_to_backpropagation_is_of_the_order_of_q(name: str) -> None:
    angles = []
    for q in (0.01, 0.001):
        cosines = [c.cosine_to_backprop for c in at(problem(name), q).parameters]
        angles.append(max(math.acos(min(c, 1.0)) for c in cosines))
    assert angles[0] < 2e-2
    assert angles[1] < 0.11 * angles[0] + 1e-7


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("algorithm", ["strict", "error-optimization"])
def test_after_automatic_steps_inference_is_at_its_equilibrium(name: str, algorithm: str) -> None:
    found = regime(problem(name), algorithm, rate="auto", steps="auto")
    assert found.settled
    assert found.distance < 1e-2
    assert found.q > 1
    assert not found.notes
    for c in found.parameters:
        assert c.cosine_to_equilibrium > 0.999
        assert c.ratio_to_equilibrium == pytest.approx(1, abs=0.02)


def test_the_equilibrium_of_a_linear_network_is_its_closed_form() -> None:
    """The residual at equilibrium is (1 + Σ P_l P_lᵀ)⁻¹ r; the last gradient's norm over backpropagation's follows."""
    p = Problem(linear, (4, 5))
    w1, w2, w3 = (w.detach() for w in p.model.parameters())
    spread = torch.eye(3, dtype=torch.float64) + w3 @ w3.T + (w3 @ w2) @ (w3 @ w2).T
    residual = torch.linalg.solve(spread, (p.x @ (w3 @ w2 @ w1).T - p.target).T).T
    gradient = (residual @ w3 @ w2).T @ p.x
    first = regime(p, "strict", steps=4000, rate=0.2).parameters[0]
    expected = p.backprop["0.weight"]
    assert first.name == "0.weight"
    assert first.ratio_to_backprop == pytest.approx(float(gradient.norm() / expected.norm()), rel=1e-6)
    cosine = float((gradient * expected).sum() / (gradient.norm() * expected.norm()))
    assert first.cosine_to_backprop == pytest.approx(cosine, rel=1e-6)
    assert first.cosine_to_equilibrium == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["strict", "fixed-prediction", "alm", "nudged"])
def test_too_few_steps_for_the_longest_path_are_told(algorithm: str) -> None:
    found = regime(problem("gated"), algorithm, steps=2)
    assert any("news of the loss takes 5 steps to the farthest vertex, and 2 are taken" in n for n in found.notes)
    assert any(math.isnan(c.cosine_to_backprop) or c.ratio_to_backprop < 0.5 for c in found.parameters)


def test_error_optimization_hears_the_loss_in_one_step() -> None:
    assert not any("news" in n for n in regime(problem("gated"), "error-optimization", steps=1).notes)


@pytest.mark.parametrize("algorithm", ["fixed-prediction", "meta-pcn"])
def test_fixed_prediction_settles_in_backpropagation(algorithm: str) -> None:
    p = problem("gated")
    found = regime(p, algorithm, steps=200, rate=0.5)
    assert found.q == pytest.approx(100)
    assert found.settled_after == 5
    assert found.distance < 1e-10
    assert all(c.cosine_to_backprop == pytest.approx(1) for c in found.parameters)


def test_alm_settles_in_backpropagation() -> None:
    found = regime(problem("chain"), "alm", penalty="auto", rate="auto", steps="auto")
    assert found.settled
    assert all(c.cosine_to_backprop == pytest.approx(1, abs=1e-6) for c in found.parameters)
    assert not found.notes


@pytest.mark.parametrize("algorithm", ["incremental", "langevin"])
def test_algorithms_that_move_parameters_or_draw_noise_are_compared_as_strict(algorithm: str) -> None:
    p = problem("gated")
    found = regime(p, algorithm, steps=7, rate=0.05)
    more = 50 if algorithm == "langevin" else 0
    assert found.steps == 7 + more
    assert found.parameters == regime(p, "strict", steps=7 + more, rate=0.05).parameters
    assert "compared as strict" in found.notes[0]


@pytest.mark.parametrize("algorithm", ["exact", "zil"])
def test_algorithms_without_steps_have_no_regime(algorithm: str) -> None:
    p = problem("chain")
    pc = p.compile(algorithm)
    with pytest.raises(pccompile.CompileError, match=f"{algorithm} takes no inference steps"):
        pc.analyse(p.x, target=p.target, kinds=("regime",))
    assert pc.analyse(p.x, target=p.target).regime is None


def test_the_report_has_a_row_for_each_parameter() -> None:
    p = problem("gated")
    found = p.compile("strict").analyse(p.x, target=p.target)
    assert "regime: q = " in str(found)
    assert "c.weight" in str(found)
    plain = json.loads(found.json())["regime"]
    assert [c["name"] for c in plain["parameters"]] == [*p.backprop]


def test_the_gradients_compared_are_those_that_the_algorithm_gives() -> None:
    p = problem("dag")
    found = regime(p, "strict", steps=9, rate=0.1)
    own = p.gradients("strict", steps=9, rate=0.1)
    for c in found.parameters:
        expected = float(own[c.name].norm() / p.backprop[c.name].norm())
        assert c.ratio_to_backprop == pytest.approx(expected, rel=1e-9)
    assert apart(own, p.backprop) > 0.1
