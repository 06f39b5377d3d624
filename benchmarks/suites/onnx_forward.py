"""The ONNX project's cases through its own runner: what a model yields, compared at the case's own tolerance."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
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


@cache
def items() -> dict[str, Any]:
    """The runner's function of each case, on the CPU."""
    cases()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = Runner(PredictiveCodingBackend)
    return {n.removesuffix("_cpu"): i.func for t in runner._test_items.values() for n, i in t.items() if "_cpu" in n}


def forward(name: str) -> Row:
    """The row of one case; what the runner writes goes to a folder that is thrown away."""
    kind, start = kind_of(cases()[name]), time.process_time()
    status, reason = "pass", ""
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            with patch.dict(os.environ, {"ONNX_HOME": folder, "ONNX_MODELS": folder}):
                items()[name](None)
    except CompileError as error:
        status, reason = "fail" if error.__cause__ else "refused", one_line(error)
    except AssertionError as error:
        status, reason = "wrong", one_line(error)
    except Exception as error:
        status, reason = "fail", f"{type(error).__name__}: {one_line(error)}"
    return Row(name, kind, status, int(status == "pass"), 1, time.process_time() - start, reason)


def one_line(error: Exception) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:200]
