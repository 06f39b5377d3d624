"""The ONNX project's own cases keep passing: a sample; the day's, and all of them, slowly."""

from __future__ import annotations

import pytest

from coverage.driver import DRIVER, SEED, broken, sampled, today


def test_a_sample_of_the_cases() -> None:
    assert not broken("onnx", sampled("onnx", 3, SEED))


@pytest.mark.slow
def test_the_sample_of_the_day() -> None:
    assert not broken("onnx", sampled("onnx", 60, today()))


@pytest.mark.slow
def test_all_cases() -> None:
    assert not broken("onnx", DRIVER.suite_of("onnx").names())
