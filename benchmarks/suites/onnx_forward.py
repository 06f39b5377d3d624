"""The ONNX project's cases through its own runner: what a model yields, compared at the case's own tolerance."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import torch
from onnx.backend.base import Backend
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from pccompile.diagnostics import CompileError
from pccompile.onnx_backend import PredictiveCodingBackend
from suites.rows import Row

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
LOADED = {"real": "light"}
"""Kinds whose name is another in the project's loader."""


@cache
def cases() -> dict[str, TestCase]:
    """All cases by name, those of the operators generated anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [c for kind in (*(k for k in KINDS if k != "light"), "real") for c in load_model_tests(kind=kind)]
    return {c.name: c for c in found}


def kind_of(case: TestCase) -> str:
    """One of KINDS."""
    return LOADED.get(case.kind, case.kind)


class Items:
    """The runner's function of each case, on the CPU, for a backend; made when first asked for."""

    def __init__(self, backend: type[Backend]) -> None:
        self.backend = backend
        self.functions: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if not self.functions:
            cases()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tests = Runner(self.backend)._test_items.values()
            self.functions = {n.removesuffix("_cpu"): i.func for t in tests for n, i in t.items() if "_cpu" in n}
        return self.functions[name]


ITEMS = Items(PredictiveCodingBackend)


def forward(name: str) -> Row:
    """The row of one case as the model is read."""
    return outcome(name, kind_of(cases()[name]), ITEMS)


def outcome(name: str, kind: str, items: Items) -> Row:
    """The row of one case; what the runner writes goes to a folder that is thrown away."""
    function, start = items[name], time.process_time()
    status, reason = "pass", ""
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            with patch.dict(os.environ, {"ONNX_HOME": folder, "ONNX_MODELS": folder}):
                function(None)
    except CompileError as error:
        beyond = error.problems[0].what.startswith("torch.export cannot")
        status = "not capturable" if beyond else "fail" if error.__cause__ else "refused"
        reason = one_line(error)
    except AssertionError as error:
        status, reason = "wrong", one_line(error)
    except Exception as error:
        status, reason = "fail", f"{type(error).__name__}: {one_line(error)}"
    return Row(name, kind, status, int(status == "pass"), 1, time.process_time() - start, reason)


def model_of(name: str) -> onnx.ModelProto:
    """The model of one case."""
    case = cases()[name]
    if case.model is not None:
        return case.model
    inside = Path(onnx.__file__).parents[1] / case.url if case.url else Path(case.model_dir) / "model.onnx"
    return onnx.load(inside)


def one_line(error: Exception) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:200]
