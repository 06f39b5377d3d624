"""Equations for readers: what a vertex predicts, and what it sends to a parent."""

from __future__ import annotations

import functools
import re

import sympy as sp

from pccompile.ir import Node, Ref, Vertex
from pccompile.ops.elementwise import arguments, is_real, number
from pccompile.ops.expressions import x
from pccompile.ops.registry import definition

LETTERS = {"weight": "W", "self": "x", "mat2": "y", "other": "y"}
"""What arguments are called in the equations of messages, unless messages read something else in their place."""
LONGEST = 60


def working(vertex: Vertex) -> list[Node]:
    """The operations of a vertex that compute something, wiring left out."""
    nodes = [n for n in vertex.prediction if n.op != "getitem"]
    computing = [n for n in nodes if not definition(n.op).wiring]
    return computing or nodes[-1:]


TRAPPINGS = re.compile(r"^native_|_legit(_functional|_no_training)?$|_with_indices$|_forward$")
"""What ATen adds to an operation's name that says how it is computed."""


def short(op: str) -> str:
    """The operation's name as people say it."""
    return TRAPPINGS.sub("", TRAPPINGS.sub("", op.split(".")[1].strip("_"))) if "." in op else op


def prediction(vertex: Vertex) -> str:
    """v̂ as an equation of the vertex's parents."""
    text, nodes = "", working(vertex)
    for n in nodes:
        own = definition(n.op).equation or f"{short(n.op)}(x)"
        inner = text[: LONGEST + 1] if n is not nodes[0] else ""
        text = (
            re.sub(r"\bx\b", f"({inner})" if " " in inner and own != f"{short(n.op)}(x)" else inner, own)
            if inner
            else own
        )
    return text if len(text) <= LONGEST else " ∘ ".join(short(n.op) for n in reversed(nodes))


def message(child: Vertex, parent: str) -> str:
    """What `child` sends to `parent`, with ε[child] for its error, s[child] where its energy sends another."""
    own = f"{'s' if child.energy else 'ε'}[{child.name}]"
    if parent in child.feedback:  # a value: what stands for a weight is no parent of a message to another vertex
        return f"{child.feedback[parent]}ᵀ {own}"
    text = own
    fed = {parent}
    for n in child.prediction:
        fed |= {n.name} if fed & set(n.inputs) else set()
    nodes = [n for n in working(child) if n.name in fed]
    for i, n in enumerate(reversed(nodes)):
        text = _adjoint(n, text, child, parent, last=i == len(nodes) - 1)
        if len(text) > LONGEST:
            return f"Jᵀ {own}"
    return text


def _adjoint(n: Node, e: str, child: Vertex, parent: str, last: bool) -> str:
    argument = next((k for k, a in n.args.items() if a == parent), None) if last else None
    if child.how.get(n.name) == "dropped":
        return e
    known = definition(n.op)
    if forms := known.sent:
        letters = {k: child.feedback.get(str(n.args.get(k)), v) for k, v in LETTERS.items()}
        return forms.get(argument or "", next(iter(forms.values()))).format(e=e, **letters)
    if known.formula is not None and is_real(n, arguments(n.op), known.formula, {}):
        slope, text = _slope(_Call(n), argument)
        if slope == 1 or slope == -1:
            return e if slope == 1 else f"−{e}"
        if slope.is_number:
            return f"{float(slope):.6g} {e}" if slope.is_extended_real else f"{slope} {e}"
        return f"{text} ⊙ {e}" if len(text) < LONGEST // 2 else f"{short(n.op)}′ ⊙ {e}"
    if known.family == "linear" and known.wiring:
        return e
    return f"J[{short(n.op)}]ᵀ {e}"


class _Call:
    """A node, equal to others of the same operation with the same numbers: their slopes are the same."""

    def __init__(self, node: Node) -> None:
        numbers = ((k, type(a), a) for k, a in node.args.items() if not isinstance(a, Ref))
        self.node, self.key = node, (node.op, *numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=1024)
def _slope(call: _Call, argument: str | None) -> tuple[sp.Expr, str]:
    """The derivative of an operation's formula by one of its arguments, and its text."""
    n, symbols = call.node, arguments(call.node.op)
    symbol = next((s for s, a in symbols if a == argument), x)
    numbers = {s: number(n[a]) for s, a in symbols if isinstance(n[a], bool | int | float)}
    formula = definition(n.op).formula
    assert formula is not None
    slope = sp.diff(formula(n), symbol).xreplace(numbers)
    return slope, str(slope) if slope.is_Symbol else f"({slope})"
