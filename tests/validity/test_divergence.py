"""Inference that diverges is named; nothing that diverged passes for a result."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import Residual, mlp, seeded
from torch import Tensor

import pccompile
from pccompile import CompileError, PCModule
from pccompile.analysis.compare import agrees, difference
from pccompile.cli import main
from pccompile.report.law import gradient_check
from pccompile.runtime.divergence import all_finite

WILD = {"algorithm": "strict", "steps": 300, "rate": 60.0}


def summed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


def wild(dtype: torch.dtype = torch.float32, **how: Any) -> tuple[PCModule, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=draw, dtype=dtype), torch.randint(3, (6,), generator=draw)
    return pccompile.compile(seeded(mlp, dtype), (x,), **{**WILD, "loss": summed, **how}), x, y


def test_it_warns_once_and_names_vertex_step_and_rate() -> None:
    pc, x, y = wild()
    with pytest.warns(
        RuntimeWarning, match=r"strict inference diverges at rate 60: the error of \w+ .* step \d+ of 300"
    ):
        pc.loss(x, target=y).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pc.loss(x, target=y).backward()


def test_it_raises_where_that_is_asked_for() -> None:
    pc, x, y = wild(on_divergence="raise")
    with pytest.raises(CompileError, match="diverges at rate 60") as caught:
        pc.loss(x, target=y).backward()
    assert "smaller rate" in caught.value.problems[0].hint
    assert all(p.grad is None for p in pc.parameters())


def test_it_can_be_ignored() -> None:
    pc, x, y = wild(on_divergence="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pc.loss(x, target=y).backward()


def test_the_step_is_the_first_that_is_not_finite() -> None:
    pc, x, y = wild(on_divergence="raise")
    with pytest.raises(CompileError) as caught:
        pc.loss(x, target=y).backward()
    words = str(caught.value).split()
    step, vertex = int(words[words.index("step") + 1]), words[words.index("of") + 1]
    trace = pc.infer((x,), target=y)
    assert trace.first_not_finite() == (vertex, step)
    assert trace.errors[vertex][step - 1].isfinite().all()


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_what_settles_is_left_alone(rate: float) -> None:
    pc, x, y = wild(rate=rate, steps=20, on_divergence="raise")
    pc.loss(x, target=y).backward()
    trace = pc.infer((x,), target=y)
    assert trace.settles
    assert trace.first_not_finite() is None
    assert "settle" not in repr(trace)
    assert pccompile.verify(pc, (x,), target=y).passed


def test_relaxed_fixed_prediction_is_watched_too() -> None:
    model = seeded(mlp, torch.float32)
    with torch.no_grad():
        model[4].weight.mul_(1e30)
        model[2].weight.mul_(1e30)
    x = torch.randn(6, 4)
    settings = {"algorithm": "fixed-prediction", "lowering": "relax", "steps": 50, "rate": 1.0}
    pc = pccompile.compile(model, (x,), check=False, on_divergence="raise", **settings)
    with pytest.raises(CompileError, match="fixed-prediction inference"):
        pc(x).sum().backward()


def test_numbers_that_were_none_before_inference_are_not_blamed_on_the_rate() -> None:
    pc, x, y = wild(rate=0.1, steps=5, on_divergence="raise")
    with pytest.raises(CompileError, match="before the first step: the model or its loss"):
        pc.loss(x * math.nan, target=y).backward()


@pytest.mark.parametrize(("rate", "steps"), [(60.0, 300), (3.0, 12)])
def test_nothing_that_diverged_passes_verification(rate: float, steps: int) -> None:
    """Twelve steps are too few for infinity: free energy has risen all the same."""
    pc, x, y = wild(rate=rate, steps=steps, on_divergence="ignore")
    report = pccompile.verify(pc, (x,), target=y)
    assert not report.passed
    assert report.exit_code == 3
    assert any("free energy" in c.what and not c.passed for c in report.checks)
    assert "FAIL" in str(report)
    json.dumps(report.as_dict(), allow_nan=False)


def test_a_rising_free_energy_is_said_by_the_trace() -> None:
    pc, x, y = wild(rate=3.0, steps=12, on_divergence="ignore")
    trace = pc.infer((x,), target=y)
    assert not trace.settles
    assert "does not settle: take a smaller rate" in repr(trace)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    torch.onnx.export(seeded(Residual, torch.float32), (torch.randn(6, 4),), path, dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
def test_the_command_line_writes_nothing_that_diverges(
    loss: str, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model_file.parent / "out"
    line = [str(model_file), "--algorithm", "strict", "--loss", loss, "-o", str(out), "--steps", "200"]
    assert main([*line, "--rate", "50"]) == 1
    assert "inference diverges: free energy over 200 steps" in capsys.readouterr().err
    assert not list(out.glob("*.py")) if out.exists() else True
    assert main([*line, "--rate", "50", "--verify"]) == 3
    assert not list(out.glob("*.py")) if out.exists() else True
    assert main([*line, "--rate", "0.01"]) == 0
    assert list(out.glob("*.py"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_what_is_no_number_agrees_with_nothing_finite(bad: float, norm: float) -> None:
    found, expected = torch.full((3,), bad), torch.full((3,), norm)
    d = difference("x", found, expected)
    assert d.relative_error == math.inf
    for largest in (0.0, 1.0, 1e30):
        assert not agrees(d, 1e-2, largest, torch.float32)
    assert not gradient_check("x", {"x": found}, {"x": expected}, 1e-2).passed
    assert not gradient_check("x", {"x": found, "y": expected}, {"x": expected, "y": expected}, 1e-2).passed


def test_finite_or_not_is_one_number() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan])
    assert all_finite([]) is None
    assert all_finite([torch.empty(0)]) is None
    assert bool(all_finite([good, torch.empty(0), torch.ones(2, dtype=torch.complex64)]))
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite([good, torch.tensor([value, 1.0])])
    assert not all_finite([bad, good])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_large_numbers_whose_squares_overflow_are_finite(dtype: torch.dtype) -> None:
    large = torch.full((5,), 0.9 * torch.finfo(dtype).max).to(dtype)
    assert bool(all_finite([torch.ones(2), large]))
    assert not all_finite([large, torch.tensor([math.inf]).to(dtype)])
