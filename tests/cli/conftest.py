"""A folder with a few models in it, and the command line run there, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx_frontend.build import perceptron

from pccompile.cli import main

MODELS = """
import torch
from torch import nn

print("talk while importing")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 3)

    def forward(self, x, scale=None):
        h = torch.tanh(self.a(x))
        y = self.b(x + h)
        return y if scale is None else y * scale


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))

    def example_inputs(self):
        return torch.tensor([[1, 2, 3], [4, 5, 6]])


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else -self.a(x)


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x, *, gain):
        return self.a(x) * gain


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, *tensors):
        return self.a(sum(tensors))


def make():
    return nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def fails():
    raise ValueError("no weights here\\nand a second line")


def leaves():
    raise SystemExit(5)


def number():
    return 2


value = 3
instance = make()
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "somemodels.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("import torch\n\nraise ImportError('what it needs is missing')\n")
    onnx.save(perceptron(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("somemodels", "broken", "thatnet", "beside", "json_py", "outer"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line's exit code and what it printed."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call
