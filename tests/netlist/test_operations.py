"""What an operation of projections is stands in its class and nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pccompile.backends.netlist import format as description
from pccompile.backends.netlist.operations import OPERATIONS, RULES
from pccompile.backends.netlist.operations.base import LearningRule, Operation

FOLDER = Path(description.__file__).parent
HOME = FOLDER / "operations"
NAMES = {*OPERATIONS, *RULES}
EXCEPTIONS = {
    "format.py": "the names that a description may have",
}
"""The files beside `operations/` that may have a name of an operation otherwise than to make a projection of it."""


def places(tree: ast.AST) -> Iterator[ast.Constant]:
    """The names of operations and rules in a source that make no projection or rule: in tables and comparisons."""
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            made |= {id(k.value) for k in node.keywords if k.arg in ("op", "rule")}
            if isinstance(node.func, ast.Attribute) and node.func.attr == "connect":
                made |= {id(a) for a in node.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in made:
            yield node


@pytest.mark.parametrize(
    "source, found",
    [
        ("if p.op == 'dense': pass", 1),
        ("match p.op:\n    case 'conv' | 'sparse': pass", 2),
        ("RULES = {'gather': 1}", 1),
        ("p.op in ('route', 'dense')", 2),
        ("Projection(name='dense', op='dense')", 1),
        ("circuit.connect(a, b, 'dense', port)", 0),
        ("replace(rule, rule='sparse')", 0),
    ],
)
def test_a_comparison_is_seen(source: str, found: int) -> None:
    assert len(list(places(ast.parse(source)))) == found


def test_nothing_else_knows_operations_by_name() -> None:
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        if HOME not in path.parents and str(path.relative_to(FOLDER)) not in EXCEPTIONS:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(FOLDER)}:{node.lineno}: {node.value}" for node in places(tree)]
    assert not found, f"ask the operation instead (backends/netlist/operations): {found}"


def test_every_name_has_its_class() -> None:
    assert set(OPERATIONS) == set(get_args(description.Operator))
    assert set(RULES) == set(get_args(description.Rule))


def subclasses(kind: type) -> set[type]:
    return {kind, *(deeper for inner in kind.__subclasses__() for deeper in subclasses(inner))}


def test_the_list_is_complete() -> None:
    """A class with a name is in the list; what learns through a parameter has a rule that says so back."""
    assert {k for k in subclasses(Operation) if "name" in vars(k)} == set(OPERATIONS.values())
    assert {k for k in subclasses(LearningRule) if "name" in vars(k)} == set(RULES.values())
    for name, kind in OPERATIONS.items():
        assert ("param" in kind.needs) == (kind.rule is not None)
        assert kind.rule is None or RULES[kind.rule].operation == name
