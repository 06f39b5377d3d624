"""What an operation is stands in its definition: no table of names is kept elsewhere, nor of projections' names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pccompile.backends.netlist.format import Operator

ROOT = Path(__file__).parents[2]
MOST = 2
"""So many names may stand together where a piece of code is about these very operations."""
NAME = re.compile(r"(torch\.ops\.)?aten\.\w+\.\w+")
PART = re.compile(r"\w+\.op(\.split\(.*)?")
"""The name of an operation, or a piece of it."""


def named(entries: list[ast.expr | None]) -> list[str]:
    """The operations that are named among the entries of a literal, as strings or as torch's own objects."""
    texts = (ast.unparse(e) if isinstance(e, ast.Attribute) else getattr(e, "value", None) for e in entries)
    return [t for t in texts if isinstance(t, str) and NAME.fullmatch(t)]


def tables(source: str, definitions: bool = False) -> Iterator[str]:
    """What depends on operations by their names, each as `line: what`: tables, names put together, parts of names.

    definitions: the source defines operations, so that a loop may go over the names of those that it defines alike.
    """
    nodes = [*ast.walk(ast.parse(source))]
    constants = {id(n.value) for n in nodes if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple)}
    for n in nodes:
        looped = definitions and isinstance(n, ast.For) and isinstance(n.iter, ast.Tuple)
        constants |= {id(n.iter), *map(id, n.iter.elts)} if looped else set()
    for n in nodes:
        found = named(n.keys if isinstance(n, ast.Dict) else getattr(n, "elts", []))
        if len(found) > MOST and id(n) not in constants:
            yield f"{n.lineno}: {', '.join(found[:3])}"
        if isinstance(n, ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp) and not definitions:
            made = n.key if isinstance(n, ast.DictComp) else n.elt
            if isinstance(made, ast.JoinedStr) and ast.unparse(made)[2:].startswith("aten."):
                yield f"{n.lineno}: {ast.unparse(made)}"
        test = n if isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.In | ast.NotIn) else None
        if test and getattr(test.left, "value", ".") != "." and PART.fullmatch(ast.unparse(test.comparators[0])):
            yield f"{n.lineno}: {ast.unparse(n)}"


@pytest.mark.parametrize("folder", ["pccompile", "passes", "backends"])
def test_no_table_of_operations_outside_their_definitions(folder: str) -> None:
    links = [ROOT / "pccompile" / name for name in ("passes", "backends")]
    files = (p for p in (ROOT / folder).rglob("*.py") if not any(p.is_relative_to(link) for link in links))
    found = {p: [*tables(p.read_text(encoding="utf-8"), ROOT / "pccompile" / "ops" in p.parents)] for p in files}
    assert {str(p.relative_to(ROOT)): t for p, t in found.items() if t} == {}


def of_projections(source: str) -> list[int]:
    """The lines of literals that name many operations of projections."""
    literals = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Set | ast.Tuple | ast.List | ast.Dict))
    entries = ((n, n.keys if isinstance(n, ast.Dict) else n.elts) for n in literals)
    return [n.lineno for n, own in entries if sum(getattr(e, "value", None) in get_args(Operator) for e in own) > MOST]


def test_no_table_of_projections_outside_their_classes() -> None:
    netlist = ROOT / "backends" / "netlist"
    defined = (netlist / "format.py", *(netlist / "operations").glob("*.py"))
    files = [p for p in netlist.rglob("*.py") if p not in defined]
    assert {str(p.relative_to(ROOT)) for p in files if of_projections(p.read_text(encoding="utf-8"))} == set()
    assert of_projections('T = {"gather": 1, "sparse": 2, "dense": 3}')


@pytest.mark.parametrize(
    "source",
    [
        'T = {"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"}',
        'T = ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor")',
        'T = {"aten.add.Tensor": 1, "aten.sub.Tensor": 2, "aten.mul.Tensor": 3}',
        "T = [torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.mul.Tensor]",
        'T = frozenset(f"aten.{name}.default" for name in ("mm", "bmm"))',
        'norm = "norm" in n.op',
        'least = "min" in n.op.split(".")[1]',
    ],
)
def test_a_table_is_seen(source: str) -> None:
    assert [*tables(source)]


def test_a_loop_that_defines_operations_is_none() -> None:
    source = 'for name in ("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"):\n    define(name)'
    assert [*tables(source)]
    assert not [*tables(source, definitions=True)]
