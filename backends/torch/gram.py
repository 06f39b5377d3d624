"""Values that a loop reads through one matrix only, moved behind that matrix: one product a turn in place of two.

A value that starts at its prediction p and takes the step v ← v + r (d W − (v − p)) is p + s W at every turn, where
s ← s + r (d − s) starts at 0. A layer W v + b that reads it is then (W p + b) + s W Wᵀ: where nothing else in the loop
reads v, the loop need not know it, and multiplies by the Gram matrix W Wᵀ, which is made once. It is worth its memory
where many turns take many samples through it; that is decided by the lengths of the example call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import sympy

from pccompile.backends.torch.in_place import ADD, MM, MUL, SUB, is_number
from pccompile.backends.torch.statements import (
    EFFECTS,
    Carried,
    Function,
    Label,
    Line,
    Loop,
    Lowered,
    Statement,
    statements_of,
)
from pccompile.backends.torch.writer import is_parameter
from pccompile.ir import Arg, Dim, Ref
from pccompile.ops import bind

LINEAR = "aten.linear.default"
LEAST_GAIN = 1.25
"""The Gram matrix is made where the products cost at least so many times as much without it."""


@dataclass(frozen=True)
class _Step:
    """The statements of v ← v + r (d W − (v − p)), and the layers that read v."""

    carried: Carried
    last: Statement
    scaled: Statement
    product: Statement
    dropped: tuple[Statement, ...]
    layers: tuple[Statement, ...]
    weight: Ref


def behind_weights(f: Function, lowered: Lowered, lengths: Mapping[str, int]) -> Function:
    """`f`, whose loops move values behind the weights that read them. lengths: the free dimensions of a call."""
    lines: list[Line] = []
    made = {s.target: s for function in (lowered.predict, f) for s in function.statements()}
    for line in f.lines:
        after: list[Line] = []
        if isinstance(line, Loop) and not line.shown and not any(s.op in EFFECTS for s in statements_of([line])):
            for step in _steps(line, made, lowered):
                if _worthwhile(step, turns(line, lowered), lowered, made, lengths):
                    before, line, behind = _moved(line, step, lowered)
                    lines += before
                    after += behind
        lines += [line, *after]
    return replace(f, lines=lines)


def _steps(loop: Loop, made: Mapping[Ref, Statement], lowered: Lowered) -> Iterator[_Step]:
    """The carried values that take such a step."""
    inside = {s.target for s in loop.body if isinstance(s, Statement)}
    reads = [r for line in loop.body for r in line.reads] + [c.next for c in loop.carried]
    readers = Counter(reads)

    def only(value: object, op: str) -> Statement | None:
        s = made.get(value) if isinstance(value, Ref) else None
        plain = s and s.op == op and s.target in inside and not s.keeps and s.args.get("alpha", 1) == 1
        return s if s and plain and readers[s.target] == 1 else None

    for c in loop.carried:
        last = made.get(c.next)
        if last is None or last.op != ADD or last.args["self"] != c.phi or last.args["alpha"] != 1:
            continue
        scaled = only(last.args["other"], MUL)
        if scaled is None or readers[c.next] != 1 or last.keeps not in (None, c.phi):
            continue
        factors = scaled.args["self"], scaled.args["other"]
        forces = [only(a, SUB) for a in factors if not is_number(a, made, lowered.program.numbers)]
        force = forces[0] if len(forces) == 1 else None
        product = only(force.args["self"], MM) if force else None
        error = only(force.args["other"], SUB) if force else None
        if force is None or product is None or error is None:
            continue
        own = error.args["self"] == c.phi and error.args["other"] == c.start
        weight = product.args["mat2"]
        layers = tuple(s for s in loop.body if isinstance(s, Statement) and _reads_by(s, c.phi, weight))
        known = 2 + bool(last.keeps) + len(layers)
        if own and layers and readers[c.phi] == known and weight in made and is_parameter(made[weight]):
            yield _Step(c, last, scaled, product, (product, force, error), layers, weight)


def _reads_by(s: Statement, value: Ref, weight: object) -> bool:
    return s.op == LINEAR and s.args["input"] == value and s.args["weight"] == weight


def _worthwhile(
    step: _Step, times: int, lowered: Lowered, made: Mapping[Ref, Statement], lengths: Mapping[str, int]
) -> bool:
    """Whether the products take less time with the Gram matrix."""
    graph = lowered.program.pc.graph
    types = {graph.origin.get(name, name): t for name, t in graph.params.items()}
    values = {v.name: v.type for v in lowered.program.pc.vertices}
    vertex = values.get(step.last.vertex)
    if vertex is None or len(vertex.shape) != 2:
        return False
    try:
        rows, many, few = (_at(d, lengths) for d in (vertex.shape[0], *types[made[step.weight].args["key"]].shape))
    except KeyError:
        return False
    read = len(step.layers)
    without = times * rows * many * few * (1 + read)
    behind = times * rows * many * many * read + many * many * few + (1 + read) * rows * many * few
    return without >= LEAST_GAIN * behind


def turns(loop: Loop, lowered: Lowered) -> int:
    """How many turns a loop takes unless a caller says otherwise; 0 for one over rows of numbers."""
    times = lowered.program.arguments.get(loop.turns.times)
    return times if isinstance(times, int) else 0


def _at(length: Dim, lengths: Mapping[str, int]) -> int:
    """A length as a number. Raises KeyError where it is not known."""
    if isinstance(length, int):
        return length
    return int(length.xreplace({s: sympy.Integer(lengths[str(s)]) for s in length.free_symbols}))


def _moved(loop: Loop, step: _Step, lowered: Lowered) -> tuple[list[Line], Loop, list[Line]]:
    """The lines before the loop, the loop, and the lines behind it."""
    c, labels = step.carried, lowered.labels
    name, last_of = labels[c.phi].text, step.last

    def make(label: str, op: str, *args: Arg, like: Statement | None = None, target: Ref | None = None) -> Statement:
        value = target or Ref(f"{c.phi}_{label}")
        labels.setdefault(value, Label(f"{label}_{name}"))
        since = like.since if like else 0
        return Statement(value, op, bind(op, args, {}), (like or last_of).vertex, True, since=since)

    columns = make("columns", "aten.t.default", step.weight)
    gram = make("gram", MM, step.weight, columns.target)
    before = [columns, gram]
    replaced: dict[Statement, list[Statement]] = {s: [] for s in step.dropped}
    received = Ref(f"{c.phi}_received")
    labels[received] = Label(f"received_{name}")
    for i, layer in enumerate(step.layers):
        args = {**layer.args, "input": c.start}
        known = (s.target for s in lowered.predict.statements() if s.op == LINEAR and s.args == args)
        first = next(known, None)
        if first is None:
            before.append(make(f"first{i}", LINEAR, *args.values()))
            first = before[-1].target
        moved = make(f"moved{i}", MM, received, gram.target, like=layer)
        whole = make("", ADD, first, moved.target, like=layer, target=layer.target)
        whole.keeps = layer.keeps
        replaced[layer] = [moved, whole]
    start = make("nothing", "aten.zeros_like.default", first)
    rate = next(a for a in (step.scaled.args["self"], step.scaled.args["other"]) if a != step.dropped[1].target)
    force = make("news", SUB, step.product.args["self"], received, like=step.last)
    scaled = make("step", MUL, force.target, rate, like=step.last)
    last = make("next", ADD, received, scaled.target, like=step.last)
    last.keeps = received if step.last.keeps else None
    replaced |= {step.scaled: [], step.last: [force, scaled, last]}
    body = [x for line in loop.body for x in (replaced.get(line, [line]) if isinstance(line, Statement) else [line])]
    carried = [Carried(received, start.target, last.target) if other is c else other for other in loop.carried]
    total = make("total", MM, received, step.weight)
    behind = make("", ADD, c.start, total.target, target=c.phi)
    return [*before, start], replace(loop, carried=carried, body=body), [total, behind]
