"""How long parts of the product may be: functions fit a screen, files have one idea."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.pages import ROOT

FUNCTION, CLASS, FILE, MEDIAN = 50, 250, 400, 200
"""The most lines of each, the docstring of a function not counted; half of all files have fewer than MEDIAN."""
FILES = sorted(path for room in ("pccompile", "passes", "backends") for path in (ROOT / room).rglob("*.py"))
"""The links pccompile/passes and pccompile/backends are not followed: each file is here once."""


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    return (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node, clean=False) is not None else 0


def too_long(text: str) -> Iterator[str]:
    """The parts of a file that are longer than they may be."""
    if (lines := len(text.splitlines())) > FILE:
        yield f"the file: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            lines = (node.end_lineno or 0) - node.lineno + 1
            lines -= 0 if isinstance(node, ast.ClassDef) else docstring_lines(node)
            if lines > limit:
                yield f"{node.name}: {lines} lines"


def test_nothing_is_longer_than_it_may_be() -> None:
    long = [f"{path.relative_to(ROOT)}: {part}" for path in FILES for part in too_long(path.read_text("utf-8"))]
    assert not long


def test_most_files_are_short() -> None:
    assert statistics.median(len(path.read_text("utf-8").splitlines()) for path in FILES) < MEDIAN


@pytest.mark.parametrize("lines, count", [(FUNCTION, 0), (FUNCTION + 1, 1)])
def test_a_long_function_is_noticed(lines: int, count: int) -> None:
    text = "\n".join(["def f():", '    """One', '    two."""', *["    pass"] * (lines - 1)])
    assert len(list(too_long(text))) == count


@pytest.mark.parametrize("lines, count", [(CLASS, 0), (CLASS + 1, 1)])
def test_a_long_class_is_noticed(lines: int, count: int) -> None:
    assert len(list(too_long("\n".join(["class C:", *["    x = 1"] * (lines - 1)])))) == count


def test_the_files_are_those_of_the_package() -> None:
    assert len(FILES) == len({path.resolve() for path in FILES}) > 100
    assert Path(ROOT / "passes/dce.py") in FILES
