"""The architectures of transformers keep agreeing with autograd: a sample that changes daily, and slowly all."""

from __future__ import annotations

import pytest

from coverage.driver import DRIVER, broken, sampled, today


def test_a_sample_of_the_architectures() -> None:
    assert not broken("models", sampled("models", 8, today()))


@pytest.mark.slow
def test_all_architectures() -> None:
    assert not broken("models", DRIVER.suite_of("models").names())
