"""Operators of torch's test databases that the table calls right stay right."""

import pytest

from coverage.driver import broken, sampled, table, today


def test_some_of_them() -> None:
    """About a minute's worth, others every day."""
    assert not broken("torch", sampled("torch", 60, today()))


@pytest.mark.slow
def test_all_of_them() -> None:
    assert not broken("torch", sorted({r.name for r in table("torch")}))
