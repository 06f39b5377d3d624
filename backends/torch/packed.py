"""Weights that a loop multiplies by at every turn, stored as the product reads them fastest.

A linear layer multiplies by Wᵀ, whose rows lie apart in memory. Where many turns do so, one copy of W in the order in
which Wᵀ is read costs less than it saves: it takes memory of its own, so that only compiled files do it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pccompile.backends.torch.statements import EFFECTS, Function, Label, Line, Loop, Lowered, Statement, statements_of
from pccompile.backends.torch.writer import is_parameter
from pccompile.ir import Ref
from pccompile.ops import bind

LINEAR = "aten.linear.default"
LEAST = 8
"""From so many turns on a copy is made."""


def packed(f: Function, lowered: Lowered) -> Function:
    """`f` with copies of the weights of linear layers before loops of many turns that do not change parameters."""
    lines: list[Line] = []
    made = {s.target: s for s in f.statements()}
    for line in f.lines:
        if isinstance(line, Loop) and turns(line, lowered) >= LEAST:
            inside = list(statements_of([line]))
            if not any(s.op in EFFECTS for s in inside):
                read = dict.fromkeys(s.args["weight"] for s in inside if s.op == LINEAR)
                weights = [w for w in read if w in made and is_parameter(made[w])]
                copies = {w: copied(w, lowered.labels) for w in weights}
                lines += [s for statements in copies.values() for s in statements]
                line = reading(line, {w: statements[-1].target for w, statements in copies.items()})
        lines.append(line)
    return replace(f, lines=lines)


def turns(loop: Loop, lowered: Lowered) -> int:
    """How many turns a loop takes unless a caller says otherwise; 0 for one over rows of numbers."""
    times = lowered.program.arguments.get(loop.turns.times)
    return times if isinstance(times, int) else 0


def copied(weight: Ref, labels: dict[Ref, Label]) -> list[Statement]:
    """W as a view of a copy of Wᵀ."""
    found, value = list[Statement](), weight
    for op in ("aten.t.default", "aten.contiguous.default", "aten.t.default"):
        target = Ref(f"{weight}_by_columns_{len(found)}")
        labels[target] = Label(f"{labels[weight].text}_by_columns")
        found.append(Statement(target, op, bind(op, [value], {})))
        value = target
    return found


def reading(loop: Loop, places: Mapping[Ref, Ref]) -> Loop:
    """A loop whose linear layers read other weights."""
    body = [
        reading(x, places)
        if isinstance(x, Loop)
        else replace(x, args={**x.args, "weight": places[x.args["weight"]]})
        if x.op == LINEAR and x.args["weight"] in places
        else x
        for x in loop.body
    ]
    return replace(loop, body=body)
