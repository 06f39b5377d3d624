"""docs/ecosystem.md: each row of its table names a test that is there, and a figure that this test holds."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from helpers.pages import ROOT, text

DEFAULT = 1e-7
"""What torch.testing.assert_close holds of float64 where nothing is said."""
WORDS = ("equal", "refused", "the same counts", "every number there")
"""Figures that are no bound: nothing may differ."""


class Row(NamedTuple):
    library: str
    tried: str
    test: str
    figure: str


def rows(page: str) -> list[Row]:
    """The rows of a page's first table."""
    table = page[page.index("| library |") :].split("\n\n", 1)[0].splitlines()[2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in table]


def faults(row: Row, tests: dict[str, str]) -> list[str]:
    """What a row lacks; `tests` are the texts of the files that it may name."""
    names = re.findall(r"`(test_\w+\.py)`", row.test)
    missing = [f"{name} is no test" for name in names if "\ndef test_" not in tests.get(name, "")]
    bounds = re.findall(r"\d+e-\d+", row.figure)
    if not names or missing:
        return missing or [f"{row.library} names no test"]
    if not bounds and not any(word in row.figure for word in WORDS):
        return [f"{row.library} has no figure"]
    held = [float(n) for name in names for n in re.findall(r"\b\d+e-\d+", tests[name])]
    held += [DEFAULT] * any("assert_close" in tests[name] for name in names)
    return [f"{row.library}: its test does not hold {b}" for b in bounds if float(b) not in held]


PAGE = rows(text("docs/ecosystem.md"))
TESTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests/integrations").glob("test_*.py")}


@pytest.mark.parametrize("row", PAGE, ids=lambda row: row.library)
def test_a_row_names_its_test_and_its_figure(row: Row) -> None:
    assert not faults(row, TESTS)


def test_every_test_of_another_library_is_in_the_table() -> None:
    named = {name for row in PAGE for name in re.findall(r"`(test_\w+\.py)`", row.test)}
    assert named == set(TESTS)


@pytest.mark.parametrize(
    "test, figure, fault",
    [
        ("`test_a.py`", "equal to 1e-5", []),
        ("`test_a.py`", "refused by name", []),
        ("`test_a.py`", "equal to 1e-9", ["x: its test does not hold 1e-9"]),
        ("`test_a.py`", "fine", ["x has no figure"]),
        ("`test_b.py`", "equal", ["test_b.py is no test"]),
        ("by hand", "equal", ["x names no test"]),
    ],
)
def test_a_row_that_lacks_something_is_seen(test: str, figure: str, fault: list[str]) -> None:
    assert faults(Row("x", "", test, figure), {"test_a.py": "\ndef test_x(): assert d < 1e-5"}) == fault
