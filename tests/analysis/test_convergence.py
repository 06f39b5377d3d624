"""What is predicted of inference against what it does, and both against closed forms and autograd's Hessian."""

from __future__ import annotations

import json

import pytest
import torch
from algorithms.nets import Problem, linear, problem
from torch import Tensor

import pccompile
from pccompile.analysis.convergence import left, left_by_multipliers
from pccompile.report.convergence import ConvergenceReport


def converging(p: Problem, algorithm: str, **settings: object) -> ConvergenceReport:
    found = p.compile(algorithm, **settings).analyse(p.x, target=p.target, kinds=("convergence",)).convergence
    assert found is not None
    return found


def hessian_of_a_linear_chain(p: Problem) -> Tensor:
    """∂²F/∂v² of one sample by autograd: F = ½‖v₁ − W₁x‖² + ½‖v₂ − W₂v₁‖² + ½‖t − W₃v₂‖²."""
    w1, w2, w3 = (w.detach() for w in p.model.parameters())

    def energy(v: Tensor) -> Tensor:
        a, b = v[:4], v[4:]
        parts = (a - w1 @ p.x[0], b - w2 @ a, p.target[0] - w3 @ b)
        return 0.5 * sum((e.square().sum() for e in parts), torch.zeros(()))

    found: Tensor = torch.autograd.functional.hessian(energy, torch.zeros(8, dtype=torch.float64))
    return found


@pytest.mark.parametrize("name", ["chain", "gated"])
def test_the_law_is_what_is_measured_where_paths_have_one_length(name: str) -> None:
    found = converging(problem(name), "fixed-prediction", steps=12, rate=0.3)
    assert found.steps == (1, 2, 4, 8, 12)
    assert set(found.predicted) <= set(found.measured)
    for v, predicted in found.predicted.items():
        assert all(m <= x + 1e-9 for m, x in zip(found.measured[v], predicted, strict=True))
        if name == "chain":
            assert found.measured[v] == pytest.approx(predicted, abs=1e-10)


@pytest.mark.parametrize("stepper", ["euler", "heun"])
def test_strict_on_a_linear_network_stays_below_its_slowest_mode_and_ends_in_it(stepper: str) -> None:
    p = Problem(linear, (4, 5))
    found = converging(p, "strict", stepper=stepper, steps=128, rate=0.1)
    x = 0.1 * float(torch.linalg.eigvalsh(hessian_of_a_linear_chain(p))[0])
    expected = 1 - x if stepper == "euler" else 1 - x + x * x / 2
    assert found.left == pytest.approx(expected, rel=1e-3)
    whole = found.measured["all"]
    assert all(m <= b * 1.01 for m, b in zip(whole, found.predicted["all"], strict=True))
    assert (whole[-1] / whole[-2]) ** (1 / 64) == pytest.approx(expected, abs=5e-3)


def test_what_a_step_leaves_is_the_growth_of_the_recursion() -> None:
    for x in (0.01, 0.3, 1.5):
        heavy = torch.tensor([[1 + 0.7 - x, -0.7], [1.0, 0.0]], dtype=torch.float64)
        ahead = torch.tensor([[1.7 * (1 - x), -0.7 * (1 - x)], [1.0, 0.0]], dtype=torch.float64)
        assert left("heavy-ball", x, 0.7) == pytest.approx(float(torch.linalg.eigvals(heavy).abs().max()))
        assert left("nesterov", x, 0.7) == pytest.approx(float(torch.linalg.eigvals(ahead).abs().max()))
    assert left("adam", 0.1) is None


def test_what_a_step_of_multipliers_leaves_is_the_growth_of_its_recursion() -> None:
    """u⁺ = u − ηg((S + ρ)u + λ), λ⁺ = λ + αu⁺, for scalars."""
    rate, penalty, dual, curvature, g = 0.05, 3.0, 2.0, -0.4, 1.7
    a = 1 - rate * g * (curvature + penalty)
    step = torch.tensor([[a, -rate * g], [dual * a, 1 - dual * rate * g]], dtype=torch.float64)
    expected = float(torch.linalg.eigvals(step).abs().max())
    assert left_by_multipliers(rate, penalty, dual, curvature, g) == pytest.approx(expected)


def test_error_optimization_on_a_linear_network_stays_below_its_slowest_mode() -> None:
    found = converging(Problem(linear, (4, 5)), "error-optimization", steps=64)
    assert all(m <= b * 1.01 for m, b in zip(found.measured["all"], found.predicted["all"], strict=True))
    assert found.measured["all"][-1] < 1e-2


def test_alm_approaches_backpropagation() -> None:
    found = converging(problem("chain"), "alm", penalty="auto", rate="auto", steps=512)
    assert "credits from backpropagation's" in found.quantity
    assert found.measured["all"][-1] < 1e-3
    assert found.predicted["all"][-1] < 1e-1


def test_what_is_not_predicted_is_said() -> None:
    found = converging(problem("chain"), "strict", stepper="adam", steps=4)
    assert not found.predicted
    assert any("nothing is predicted" in n for n in found.notes)
    energies = converging(problem("chain"), "strict", steps=4, precision=2.0)
    assert not energies.predicted


def test_algorithms_without_steps_have_no_convergence() -> None:
    with pytest.raises(pccompile.CompileError, match="zil takes no inference steps"):
        converging(problem("chain"), "zil")


def test_the_report_and_its_plot(tmp_path) -> None:
    p = problem("chain")
    analysis = p.compile("strict", steps=5).analyse(p.x, target=p.target, kinds=("convergence",))
    assert "convergence of strict" in str(analysis)
    assert json.loads(analysis.json())["convergence"]["steps"] == [1, 2, 4, 5]
    assert analysis.convergence is not None
    assert analysis.convergence.plot(tmp_path / "convergence.png").axes
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
