"""The architectures of transformers keep agreeing with autograd: a sample; the day's, and all of them, slowly."""

from __future__ import annotations

import pytest

from coverage.driver import DRIVER, SEED, broken, sampled, today


def test_a_sample_of_the_architectures() -> None:
    assert not broken("models", sampled("models", 3, SEED))


@pytest.mark.slow
def test_the_sample_of_the_day() -> None:
    assert not broken("models", sampled("models", 60, today()))


@pytest.mark.slow
def test_all_architectures() -> None:
    assert not broken("models", DRIVER.suite_of("models").names())
