"""The ONNX project's own cases keep passing: a random sample of them, and slowly all."""

from __future__ import annotations

import random

import pytest
from suites import onnx_cases


def rows_of(names):
    return [row for name in names for row in onnx_cases.check(name)]


def test_a_sample_does_not_crash():
    names = random.Random(0).sample(onnx_cases.names(), 300)
    bad = [r for r in rows_of(names) if r.status == "fail" and "uint" not in r.name]
    assert not bad


@pytest.mark.slow
def test_all_floors():
    figures = onnx_cases.figures(rows_of(onnx_cases.names()))
    assert {n: figures[n] for n, floor in onnx_cases.FLOORS.items() if figures[n] < floor} == {}
