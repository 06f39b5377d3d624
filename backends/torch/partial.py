"""The later functions of a program whose loss uses some of its outputs only, on what the whole program hands on.

An output without a loss sends nothing, and not zeros: 0 times an infinite derivative is no number, and a custom
backward may ask which gradients are there.
"""

from __future__ import annotations

from collections.abc import Hashable

from pccompile.backends.torch.context import take_none
from pccompile.backends.torch.emit import File
from pccompile.backends.torch.reserved import SWEEP
from pccompile.backends.torch.statements import Statement
from pccompile.ir import Program, Ref


def emit_partial(whole: Program, part: Program) -> str | None:
    """A file with the functions of `part` after prediction, which take the context that `predict` of `whole` returns.

    whole: as its file was emitted. part: a program over the same operations that clamps some of the same outputs.
    Returns None where `part` needs what `whole` does not hand on.
    """
    handed = File(whole)
    file = File(part, by_lists=handed.by_lists)
    handed.bodies()
    places = _places(handed)
    identities = _identities(file)
    slots: dict[int, Ref] = {}
    for value in file.lowered.context:
        free = [place for place in places.get(identities[value], ()) if place not in slots]
        if not free:
            return None
        slots[free[0]] = value
    count = len(handed.lowered.context)
    file.names = {slots.get(i, Ref(f"unread {i}")): file.names.get(slots.get(i, Ref("")), "_") for i in range(count)}
    file.popped, file.dims_first = [], handed.dims_first
    take_none(file.parts(SWEEP, file.lowered.sweep).function)
    builds = file.bodies()
    if not file.dims <= handed.dims:
        return None
    file.dims = handed.dims
    bodies = [build() for _, build in builds]
    if not file.lowered.sweep.lines:
        bodies.append(file.signature.both())
    return "\n\n\n".join([file.head(), *map("\n".join, bodies)]) + "\n"


def _places(file: File) -> dict[Hashable, list[int]]:
    """Where in the context each value stands that prediction hands on, by all that it is.

    A value and its alias are the same, and both may be handed on.
    """
    position = {value: i for i, value in enumerate(file.lowered.context)}
    identities = _identities(file)
    places: dict[Hashable, list[int]] = {}
    for value, i in position.items():
        places.setdefault(identities[value], []).append(i)
    return {("value", name): [position[v]] for name, v in file.lowered.made.items() if v in position} | places


def _identities(file: File) -> dict[Ref, Hashable]:
    """What each value of prediction is, in terms that two programs over the same operations share."""
    named: dict[Ref, str] = {}
    for name, value in file.lowered.made.items():
        named.setdefault(value, name)
    found: dict[Ref, Hashable] = {}
    for s in file.lowered.predict.statements():
        found[s.target] = _identity(s, named, found)
    return found


def _identity(s: Statement, named: dict[Ref, str], found: dict[Ref, Hashable]) -> Hashable:
    if s.op == "alias":
        return found[s.args["of"]]
    if s.op == "leaf":
        return ("leaf", s.args["table"], s.args["key"])
    if s.target in named:
        return ("value", named[s.target])
    if s.op == "getitem" and s.args["of"] in found:
        return ("result", found[s.args["of"]], s.args["index"])
    return ("own", id(s))
