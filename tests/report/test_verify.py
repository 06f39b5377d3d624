"""The verifier says yes to what is right and no to what is wrong."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pccompile
from pccompile.analysis import compare
from pccompile.analysis.compare import agrees, difference
from pccompile.ops import OPS


class Residual(nn.Module):
    """Branches, dropout, running statistics, a bias whose gradient is 0, a parameter that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(6)
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        h = x + self.drop(torch.tanh(self.a(x)))
        return self.c(h + self.norm(self.b(h)))


def inputs():
    torch.manual_seed(0)
    return torch.randn(5, 6), torch.randn(5, 3)


ALGORITHMS = [
    ("exact", {}),
    ("fixed-prediction", {"steps": 10}),
    ("fixed-prediction", {"tolerance": 1e-3, "lowering": "relax"}),
    ("fixed-prediction", {"steps": 7, "rate": 1.3}),
    ("strict", {}),
]


@pytest.mark.parametrize("algorithm, settings", ALGORITHMS)
def test_right(algorithm, settings) -> None:
    x, y = inputs()
    model = Residual()
    pc = pccompile.compile(model, (x,), algorithm=algorithm, **settings)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for report in (pccompile.verify(pc, x), pccompile.verify(pc, (x,), target=y, loss=nn.functional.mse_loss)):
        assert report.passed, str(report)
        assert {p.name for p in report.parameters} == {n for n, _ in model.named_parameters()}
        assert report.forward.max_abs == 0
        assert any("float64" in n for n in report.notes)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    spare = next(p for p in report.parameters if p.name == "spare")
    assert spare.note == "none in either"


@pytest.mark.parametrize("algorithm, settings", ALGORITHMS[:4])
@pytest.mark.parametrize("op", ["aten.tanh.default", "aten.linear.default"])
def test_wrong_rules(algorithm, settings, op, monkeypatch) -> None:
    right = OPS[op]

    def wrong(b, node, err):
        return {k: b("aten.mul.Tensor", m, 1.001) if m is not None else m for k, m in right.rule(b, node, err).items()}

    monkeypatch.setitem(OPS, op, replace(right, rule=wrong))
    x, _ = inputs()
    pc = pccompile.compile(Residual(), (x,), algorithm=algorithm, check=False, **settings)
    report = pccompile.verify(pc, (x,))
    assert not report.passed
    assert report.exit_code == 3
    assert "FAIL" in str(report)


def test_a_wrong_law(monkeypatch) -> None:
    from pccompile.algorithms import lowerings

    right = lowerings.weight
    monkeypatch.setattr(lowerings, "weight", lambda steps, rate, k: right(steps, rate, k) * 0.99 ** (k // 2))
    x, _ = inputs()
    report = pccompile.verify(pccompile.compile(Residual(), (x,), algorithm="fixed-prediction", steps=20), x)
    assert not report.passed


def test_a_wrong_forward_pass() -> None:
    x, _ = inputs()
    pc = pccompile.compile(Residual().eval(), (x,))
    report = pccompile.verify(pc, x, expected=[pc(x).detach() + 0.01], reference="another")
    assert not report.forward.passed
    assert "FAIL  forward" in str(report)
    assert not pccompile.verify(pc, x, expected=[], reference="another").passed


def test_law_of_a_chain() -> None:
    x, _ = inputs()
    chain = nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(6, 6), nn.Tanh())))
    report = pccompile.verify(pccompile.compile(chain, (x,), algorithm="fixed-prediction", steps=30), x)
    assert report.passed
    assert len(report.predicted) == 10
    for p in report.parameters:
        assert p.agrees
        assert p.relative_error == pytest.approx(report.predicted[p.name], abs=1e-10)


def test_float32_where_the_model_insists() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x):
            return torch.mm(x.float(), self.a.weight.t())

    x, _ = inputs()
    report = pccompile.verify(pccompile.compile(Insists(), (x,)), x)
    assert report.passed
    assert any(n.startswith("gradients were compared in float32") for n in report.notes)
    assert report.tolerance == 1e-5


def test_outputs_of_all_kinds() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x, *, flag=True):
            y = self.a(x)
            return {"y": y, "index": y.argmax(1), "again": (y * 2, 3)}

    x, _ = inputs()
    assert pccompile.verify(pccompile.compile(Many(), (x,)), x).passed


def test_json() -> None:
    x, _ = inputs()
    text = json.dumps(pccompile.verify(pccompile.compile(Residual(), (x,)), x).as_dict(), allow_nan=False)
    assert json.loads(text)["passed"] is True


def test_difference() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0])
    assert difference("p", a, b).relative_error == 0
    assert difference("p", a, -b).cosine == pytest.approx(-1)
    assert difference("p", a * 2, b).relative_error == pytest.approx(1)
    assert difference("p", None, None).relative_error == 0
    for wrong in (difference("p", None, b), difference("p", a, None), difference("p", a[:1], b)):
        assert math.isinf(wrong.relative_error)
        assert not agrees(wrong, 1e-3, 100.0, torch.float64)
    holes = torch.tensor([math.nan, 1.0])
    assert difference("p", holes, holes).relative_error == 0
    assert not agrees(difference("p", torch.tensor([0.0, 1.0]), holes), 1e-3, 1.0, torch.float64)
    assert not agrees(difference("p", holes, torch.tensor([0.0, 1.0])), 1e-3, 1.0, torch.float64)
    nothing = difference("p", torch.full((2,), 1e-16), torch.zeros(2))
    assert agrees(nothing, 1e-10, 1.0, torch.float64)
    assert not agrees(nothing, 1e-10, 0.0, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("entries", [0, 1, 7, 8, 9, 40])
def test_blocks_are_one_tensor(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, entries: int) -> None:
    monkeypatch.setattr(compare, "BLOCK", 8)
    generator = torch.Generator().manual_seed(entries)
    a, b = (torch.randn(entries, generator=generator, dtype=dtype) for _ in range(2))
    x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (a, b))
    x, y = x.double().flatten().numpy(), y.double().flatten().numpy()
    d, size = difference("p", a, b), np.linalg.norm(x) * np.linalg.norm(y)
    assert d.norm == pytest.approx(np.linalg.norm(y))
    assert d.max_abs == pytest.approx(np.abs(x - y).max(initial=0.0))
    assert d.relative_error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y) if entries else 0.0)
    assert d.cosine == pytest.approx(x @ y / size if entries else math.nan, nan_ok=True)


@pytest.mark.parametrize("place", [0, 7, 8, 19])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_passes_in_no_block(monkeypatch: pytest.MonkeyPatch, number: float, place: int) -> None:
    monkeypatch.setattr(compare, "BLOCK", 8)
    b = torch.ones(20)
    a = b.clone()
    a[place] = number
    for found, expected in ((a, b), (b, a), (a, -a)):
        assert not difference("p", found, expected).relative_error < 1
        assert not agrees(difference("p", found, expected), 1e-3, 1.0, torch.float32)
    assert difference("p", a, a.clone()).relative_error == 0


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
def test_squares_that_float32_does_not_hold(scale: float) -> None:
    b = torch.full((5,), scale)
    assert difference("p", b * 1.5, b).relative_error == pytest.approx(0.5)
