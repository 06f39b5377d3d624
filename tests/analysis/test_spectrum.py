"""The spectrum against dense linear algebra on formulas written here, by autograd."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from algorithms.nets import Gated, Problem, linear, problem
from torch import Tensor, nn

import pccompile
from pccompile.analysis.spectrum import Spectrum, lanczos
from pccompile.runtime.displaced_batch import DisplacedBatch

Formula = Callable[[nn.Module, Tensor], list[Callable[[list[Tensor]], Tensor]]]
"""The predictions of a network's hidden vertices from the hidden values before them, and then its output's."""


def of_linear(model: nn.Module, x: Tensor) -> list[Callable[[list[Tensor]], Tensor]]:
    a, b, c = model.children()
    return [lambda v: a(x), lambda v: b(v[0]), lambda v: c(v[1])]


def of_gated(model: nn.Module, x: Tensor) -> list[Callable[[list[Tensor]], Tensor]]:
    assert isinstance(model, Gated)
    return [
        lambda v: torch.tanh(model.a(x)),
        lambda v: torch.sigmoid(model.b(v[0])),
        lambda v: v[0] * v[1],
        lambda v: torch.tanh(model.c(v[2])),
        lambda v: v[3] + v[0],
        lambda v: model.o(v[4]),
    ]


class Dense:
    """Forward values, Hessians and the Jacobian of the errors, all entries of all hidden values in one row."""

    def __init__(self, p: Problem, formula: Formula, nudge: float = 1.0) -> None:
        *self.hidden, self.output = formula(p.model, p.x)
        self.p, self.nudge = p, nudge
        values: list[Tensor] = []
        for f in self.hidden:
            values.append(f(values).detach())
        self.shapes = [v.shape for v in values]
        self.start = torch.cat([v.reshape(-1) for v in values])

    def split(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([math.prod(s) for s in self.shapes])
        return [p.reshape(s) for p, s in zip(parts, self.shapes, strict=True)]

    def errors(self, flat: Tensor) -> Tensor:
        v = self.split(flat)
        return torch.cat([(v[i] - f(v)).reshape(-1) for i, f in enumerate(self.hidden)])

    def energy(self, flat: Tensor) -> Tensor:
        loss = self.p.loss(self.output(self.split(flat)), self.p.target)
        return 0.5 * self.errors(flat).square().sum() + self.nudge * loss

    def loss(self, offset: Tensor) -> Tensor:
        v: list[Tensor] = []
        for f, d in zip(self.hidden, self.split(offset), strict=True):
            v.append(f(v) + d)
        return self.p.loss(self.output(v), self.p.target)

    def eigenvalues(self) -> dict[str, float]:
        hessian = torch.autograd.functional.hessian(self.energy, self.start)
        jacobian = torch.autograd.functional.jacobian(self.errors, self.start)
        curvature = torch.autograd.functional.hessian(self.loss, torch.zeros_like(self.start))
        singular = torch.linalg.svdvals(jacobian)
        ends = torch.linalg.eigvalsh(curvature)
        return {
            "λmax(H)": float(torch.linalg.eigvalsh(hessian)[-1]),
            "‖A‖²": float(singular[0] ** 2),
            "σmin(A)²": float(singular[-1] ** 2),
            "λmin(S)": float(ends[0]),
            "λmax(S)": float(ends[-1]),
        }


def measured(p: Problem, algorithm: str = "strict") -> dict[str, float]:
    found = p.compile(algorithm).analyse((p.x,), target=p.target, kinds=("spectrum",)).spectrum
    assert found is not None
    return {k: m.value for k, m in found.quantities.items()}


def agree(found: dict[str, float], expected: dict[str, float]) -> None:
    scale = max(abs(expected["λmin(S)"]), abs(expected["λmax(S)"]))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.05, abs=0.05 * scale if "S" in name else 0), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", [None, F.cross_entropy])
def test_the_spectrum_of_a_linear_network(seed: int, loss: object) -> None:
    p = Problem(linear, (4, 5), seed) if loss is None else Problem(linear, (4, 5), seed, loss)
    agree(measured(p), Dense(p, of_linear).eigenvalues())


@pytest.mark.parametrize("seed", range(3))
def test_the_spectrum_of_a_product(seed: int) -> None:
    p = problem("gated", seed)
    expected = Dense(p, of_gated).eigenvalues()
    agree(measured(p), expected)
    assert expected["λmin(S)"] < 0 < expected["λmax(S)"]


def test_the_loss_may_be_weighted_in_the_hessian() -> None:
    p = problem("gated")
    pc = p.compile("strict")
    runtime = pc.prepare((p.x,), loss=p.loss, target=p.target)
    assert runtime.compiled is not None
    spectrum = Spectrum(DisplacedBatch(runtime.compiled, pc.tables(runtime), {"x": p.x}, [p.target]))
    expected = Dense(p, of_gated, nudge=5.0).eigenvalues()["λmax(H)"]
    assert spectrum.hessian(5.0).value == pytest.approx(expected, rel=0.05)


def test_other_algorithms_have_the_spectrum_of_their_vertices() -> None:
    p = problem("gated")
    layered = p.compile("exact", granularity="layer").analyse(p.x, target=p.target, kinds=("spectrum",))
    assert layered.spectrum is not None
    agree({k: m.value for k, m in layered.spectrum.quantities.items()}, Dense(p, of_gated).eigenvalues())


def test_single_precision_is_enough() -> None:
    p = problem("gated")
    single = pccompile.compile(p.model.float(), (p.x.float(),), algorithm="strict", loss=p.loss, check=False)
    found = single.analyse(p.x.float(), target=p.target.float(), kinds=("spectrum",)).spectrum
    p = problem("gated")
    assert found is not None
    agree({k: m.value for k, m in found.quantities.items()}, Dense(p, of_gated).eigenvalues())


def test_nothing_moves_while_the_spectrum_is_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3))
    x, target = torch.randn(8, 5), torch.randn(8, 3)
    pc = pccompile.compile(model, (x,), algorithm="exact", check=False)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    one = pc.analyse(x, target=target, kinds=("spectrum",)).json()
    assert torch.equal(torch.get_rng_state(), state)
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    assert pc.analyse(x, target=target, kinds=("spectrum",)).json() == one


def test_a_network_without_hidden_vertices_has_no_spectrum() -> None:
    p = Problem(lambda: nn.Linear(5, 3), (4, 5))
    report = p.compile("strict").analyse(p.x, target=p.target, kinds=("spectrum",))
    assert "no hidden vertex" in str(report)
    assert json.loads(report.json())["spectrum"]["quantities"] == {}


def test_the_report_says_what_each_number_decides() -> None:
    p = problem("chain")
    report = p.compile("strict").analyse(p.x, target=p.target, kinds=("spectrum",))
    assert "λmax(H)" in str(report)
    assert "converges below rate" in str(report)
    found = json.loads(report.json(indent=2))["spectrum"]
    assert found["rates"]["strict"] == pytest.approx(2 / found["quantities"]["λmax(H)"]["value"])
    assert found["longest_path"] == 2


def test_an_unknown_kind_is_refused() -> None:
    p = problem("chain")
    with pytest.raises(pccompile.CompileError, match="unknown kind 'colour'"):
        p.compile("strict").analyse(p.x, target=p.target, kinds=("colour",))


@pytest.mark.parametrize("size", [1, 2, 12, 300])
def test_lanczos_finds_both_ends(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = rows + rows.T
    ends = lanczos(matrix.mv, torch.randn(size, generator=generator, dtype=torch.float64), 1, both=True)
    values = torch.linalg.eigvalsh(matrix)
    scale = float(values.abs().max())
    assert ends.low.value == pytest.approx(float(values[0]), abs=0.05 * scale)
    assert ends.high.value == pytest.approx(float(values[-1]), abs=0.05 * scale)
    assert ends.high.sweeps <= 40
