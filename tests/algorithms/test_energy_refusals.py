"""What is refused of energies and precisions, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

import pccompile
from algorithms.nets import Problem, problem
from pccompile.ir import Energy
from pccompile.ops.energies import energy

V, VHAT, STIFF = sp.symbols("v vhat stiff")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: energy("cauchy"), "unknown energy 'cauchy'"),
        (lambda: energy("huber", width=1.0), "the energy huber has no parameter width"),
        (lambda: energy("huber", delta=0.0), "delta of the energy huber is 0.0"),
        (lambda: energy("gaussian", precision=-1.0), "precision of the energy gaussian is -1.0"),
        (lambda: energy("student-t", nu=math.inf), "nu of the energy student-t is inf"),
        (lambda: energy("laplace", entropy=True), "the energy laplace takes no entropy"),
        (lambda: energy("laplace", rest=VHAT), "the energy laplace has its own rest"),
        (lambda: energy(STIFF * (V - VHAT) ** 2), "reads stiff"),
        (lambda: energy(STIFF * (V - VHAT) ** 2, stiff=math.nan), "stiff of an energy is nan"),
        (lambda: energy(sp.gamma(V - VHAT)), "which equations do not have"),
        (lambda: energy((V - VHAT) ** 2, entropy=True), "entropy belongs to bernoulli"),
        (lambda: energy(sp.Piecewise((V**2, (V > 0) & (V < 1)), (V, True))), "single comparisons"),
    ],
)
def test_a_wrong_energy_is_refused(make: Callable[[], Energy], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "algorithm, how, words",
    [
        ("strict", {"energies": {"a": energy("bernoulli")}}, 'energy("bernoulli", entropy=True)'),
        ("strict", {"energies": energy("categorical")}, "tanh is free, and the energy categorical falls for ever"),
        ("strict", {"energies": {"add": energy("poisson")}}, "add is free, and the energy poisson falls"),
        ("strict", {"energies": energy(V * VHAT)}, "add a term that grows with v"),
        ("strict", {"energies": {"fc": energy("huber")}}, "hidden vertices: tanh, sigmoid, mul and 2 more; modules: a"),
        ("strict", {"energies": {"o": energy("huber")}}, "give it as loss="),
        ("strict", {"energies": {"tanh": "huber"}}, "the energy of tanh is 'huber'"),
        ("strict", {"energies": "huber"}, "the energy of tanh is 'huber'"),
        ("strict", {"precision": {"nowhere": 2.0}}, "precision names 'nowhere'"),
        ("strict", {"precision": {"o": 2.0}}, "precision names o, an output, whose energy is the loss that is given"),
        ("strict", {"precision": {"a": 0.0}}, "precision of tanh is 0.0"),
        ("strict", {"precision": -1.0}, "precision of tanh is -1.0"),
        ("strict", {"precision": "learned"}, "precision of tanh is 'learned'"),
        ("strict", {"precision": {"a": [1.0, 2.0]}}, "or pccompile.learned_precision(2.0, 2.0)"),
        ("strict", {"precision": {"a": 2.0}, "energies": {"a": energy("huber")}}, "tanh has both an energy and a"),
        ("exact", {"energies": energy("huber")}, "exact knows no energy but half the squared error"),
        ("fixed-prediction", {"precision": 2.0}, "fixed-prediction knows no energy but half the squared error"),
        ("zil", {"precision": 2.0}, "zil knows no energy but half the squared error"),
        ("alm", {"energies": energy("poisson", entropy=True)}, "alm takes energies of v - vhat alone"),
        ("error-optimization", {"energies": energy("bernoulli", entropy=True)}, "takes energies of v - vhat alone"),
    ],
)
def test_what_cannot_be_is_refused_by_name(algorithm: str, how: dict[str, Any], words: str) -> None:
    with pytest.raises(pccompile.CompileError) as caught:
        problem("gated").compile(algorithm, **how)
    assert words in str(caught.value)


def test_an_energy_of_rows_needs_a_dimension_beside_the_samples() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 1), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x).squeeze(1)).unsqueeze(1))

    p = Problem(Flat, (4, 5))
    with pytest.raises(pccompile.CompileError, match="is over the last dimension, and tanh has none"):
        p.compile("strict", energies=energy("categorical", entropy=True))


def test_a_circuit_has_neither() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), torch.randn(1, 3)
    for how in ({"energies": energy("huber")}, {"precision": 2.0}):
        with pytest.raises(pccompile.CompileError, match="a circuit knows no energy"):
            pccompile.compile(model, (x,), backend="netlist", **how)  # type: ignore[call-overload]
