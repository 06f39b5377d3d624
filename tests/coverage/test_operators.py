"""Operators of torch's test databases that the table calls right stay right."""

import pytest

from coverage.driver import SEED, broken, sampled, table, today


def test_some_of_them() -> None:
    """Less than a minute's worth, always the same."""
    assert not broken("torch", sampled("torch", 4, SEED))


@pytest.mark.slow
def test_the_sample_of_the_day() -> None:
    assert not broken("torch", sampled("torch", 60, today()))


@pytest.mark.slow
def test_all_of_them() -> None:
    assert not broken("torch", sorted({r.name for r in table("torch")}))
