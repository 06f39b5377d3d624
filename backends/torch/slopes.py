"""Slopes of activations that several messages are multiplied by, computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pccompile.backends.torch.statements import Function, Label, Line, Loop, Statement, made_in, statements_of
from pccompile.ir import Ref
from pccompile.ops import bind

GRAD = "grad_output"
COSTLY = frozenset(f"aten.{name}_backward.default" for name in ("gelu", "silu", "mish", "softplus", "elu"))
"""Kernels that multiply by a slope which takes longer to compute than a product does."""


def share_slopes(f: Function, labels: dict[Ref, Label]) -> None:
    """Call each costly kernel on ones, where it would be called with other errors again, or in a loop.

    Such a kernel is linear in the error, element by element: what it makes of ones is the slope. The ones are one
    number at all places, which takes no memory to write and to read.
    """
    inside = {r for line in f.lines if isinstance(line, Loop) for r in made_in([line])}
    calls: Counter[object] = Counter()
    for s, looped in _costly(f.lines):
        calls[_slope(s)] += 2 if looped or s.each else 1
    shared = {key for key, count in calls.items() if count > 1}
    slopes: dict[object, Ref] = {}
    lines: list[Line] = []
    for line in f.lines:
        for s, _ in _costly([line]):
            key = _slope(s)
            if key not in shared or inside & ({*s.reads} - {s.args[GRAD]}):
                continue
            if key not in slopes:
                one, ones, slopes[key] = (Ref(f"{s.target}_{part}") for part in ("one", "ones", "slope"))
                like = next(r for r in s.reads if r != s.args[GRAD])
                one_args = bind("aten.new_ones.default", (like, ()), {})
                name = labels[s.target].text
                for value, kind in ((one, "one"), (ones, "ones"), (slopes[key], "slope")):
                    labels[value] = Label(f"{kind}_{name}")
                lines += [
                    Statement(one, "aten.new_ones.default", one_args, s.vertex, owner=s.owner),
                    Statement(ones, "aten.expand_as.default", {"self": one, "other": like}, s.vertex, owner=s.owner),
                    Statement(slopes[key], s.op, {**s.args, GRAD: ones}, s.vertex, s.even, owner=s.owner),
                ]
            s.op, s.args, s.even, s.over = "aten.mul.Tensor", {"self": s.args[GRAD], "other": slopes[key]}, True, True
        lines.append(line)
    f.lines[:] = lines


def _costly(lines: Sequence[Line]) -> Iterator[tuple[Statement, bool]]:
    """The calls of costly kernels, and whether they are in a loop."""
    for line in lines:
        for s in statements_of([line]):
            if s.op in COSTLY and s.args[GRAD] not in [a for k, a in s.args.items() if k != GRAD]:
                yield s, isinstance(line, Loop)


def _slope(s: Statement) -> tuple[object, ...]:
    """What two calls share that differ in the error alone."""
    return (s.op, *((k, type(a), a) for k, a in s.args.items() if k != GRAD))
