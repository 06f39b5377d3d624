"""docs/glossary.md: what it names is defined where it says, and the data structures' own words are in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from helpers.pages import ROOT, text

from pccompile.ir.equations import TERMS

PAGE = "docs/glossary.md"
ROWS = re.findall(r"^\| (?!term|---)(.*?) \| (.*?) \| `([\w/]+\.py)`(?: `([\w.]+)`)? \|$", text(PAGE), re.MULTILINE)
STRUCTURES = ("pccompile/ir", "backends/netlist/format.py")
"""Where each public class is a word that a reader meets."""


@cache
def parsed(path: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def defined(path: str, name: str) -> bool:
    """Whether a file has something of that name: a class, a function, an argument, a name that is bound, or a word."""
    scope: list[ast.AST] = [parsed(path)]
    for part in name.split("."):
        scope = [node for tree in scope for node in ast.walk(tree) if named(node) == part]
    return bool(scope)


def named(node: ast.AST) -> str | None:
    """The name that a node of a syntax tree gives to something."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
            return name
        case ast.Name(id=name, ctx=ast.Store()) | ast.Constant(value=str(name)):
            return name
    return None


def classes(path: str) -> Iterator[str]:
    """The public classes of a file or a folder."""
    place = ROOT / path
    for file in [place] if place.is_file() else sorted(place.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name


def test_every_row_is_read() -> None:
    rows = [line for line in text(PAGE).splitlines() if line.startswith("| ") and not line.startswith("| term")]
    assert len(ROWS) == len(rows) > 100


@pytest.mark.parametrize("path, name", sorted({(path, name) for _, _, path, name in ROWS}))
def test_what_is_named_is_defined_there(path: str, name: str) -> None:
    assert (ROOT / path).exists()
    assert not name or defined(path, name)


def test_another_name_is_seen() -> None:
    assert not defined("pccompile/ir/pc.py", "Vertex.slot")
    assert not defined("pccompile/ir/pc.py", "Vertexes")


def test_no_term_is_there_twice() -> None:
    terms = [term for term, *_ in ROWS]
    assert len(set(terms)) == len(terms)


def test_the_words_of_the_data_structures_are_there() -> None:
    words = set(re.findall(r"\w+", text(PAGE)))
    found = {name for path in STRUCTURES for name in classes(path)}
    helpers = {"EquationError", "Namer", "Struct", "Output", "Feedback", "Role"}  # not met, or met as plain words
    assert found - helpers - words == set()
    assert set(TERMS) - words == set()
