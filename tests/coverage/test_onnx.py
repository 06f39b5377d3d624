"""The ONNX project's own cases keep passing: a sample of them that changes daily, and slowly all."""

from __future__ import annotations

import pytest

from coverage.driver import DRIVER, broken, sampled, today


def test_a_sample_of_the_cases() -> None:
    assert not broken("onnx", sampled("onnx", 8, today()))


@pytest.mark.slow
def test_all_cases() -> None:
    assert not broken("onnx", DRIVER.suite_of("onnx").names())
