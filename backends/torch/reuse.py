"""Values that a loop makes anew at each turn, written into the memory that they had at the turn before.

The first turn makes that memory, and each later one writes into it by the operation's `out=`. A value may be written so
where nothing reads, after the write, what the turn before has left there: neither under its own name nor as what the
loop carries, nor through a view. Operations whose `out=` torch has only as a copy of a new tensor are left as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from pccompile.backends.torch.in_place import ADD, MUL, Uses
from pccompile.backends.torch.statements import EFFECTS, Function, Line, Loop, Statement, fresh, statements_of
from pccompile.ir import PCGraph, Ref
from pccompile.ops import definition, overload

LINEAR = "aten.linear.default"


def reused(f: Function, pc: PCGraph) -> Function:
    """`f` with loops that reuse the memory of what they make, but for loops that show their values to a trace."""
    made = {s.target: s for s in f.statements()}
    matrices = {v.name for v in pc.vertices if all(len(n.tensor.shape) == 2 for n in v.prediction if n.op == LINEAR)}

    def changed(lines: Sequence[Line]) -> list[Line]:
        found: list[Line] = []
        for line in lines:
            if isinstance(line, Loop):
                line = replace(line, body=changed(line.body))
                if line.turns.times and not line.record:
                    _mark(line, made, matrices)
            found.append(line)
        return found

    return replace(f, lines=changed(f.lines))


def _mark(loop: Loop, made: Mapping[Ref, Statement], matrices: Collection[str]) -> None:
    """Mark the statements of a loop that write into memory of the turn before."""
    turn = _Turn(loop, made)
    for i, s in enumerate(loop.body):
        if not isinstance(s, Statement) or s.into or s.over or s.op in EFFECTS:
            continue
        source = made.get(s.args["self"]) if definition(s.op).from_result else None
        if source is not None and source.reuses and turn.alone(source.target) is s:
            s.reuses = source.target
        elif (s.op != LINEAR or s.vertex in matrices) and fresh(s, made) and out_variant(s.op) is not None:
            s.reuses = s.target if turn.safe(i, turn.worked_on(s.target)) else None


class _Turn:
    """What one turn of a loop leaves in memory, and what the next one reads of it."""

    def __init__(self, loop: Loop, made: Mapping[Ref, Statement]) -> None:
        self.loop, self.made, self.uses = loop, made, Uses(loop, made)
        self.holders: dict[Ref, list[Ref]] = {}
        """The values that may be in the memory of what is carried."""
        for value, memory in self.uses.memory.items():
            for r in memory:
                self.holders.setdefault(r, []).append(value)
        self.ends: dict[Ref, list[Ref]] = {}
        """For each memory what is carried and may lie in it when the turn ends."""
        for c in loop.carried:
            for r in self.uses.of(c.next):
                self.ends.setdefault(r, []).append(c.phi)
        self.views: dict[Ref, list[Statement]] = {}
        """The statements that may hand on the memory of a value."""
        for s in loop.body:
            if isinstance(s, Statement) and not fresh(s, made):
                for r in s.reads:
                    self.views.setdefault(r, []).append(s)
        self.inner = {r for line in loop.body if isinstance(line, Loop) for r in line.reads}
        self.lent = {r for s in statements_of(loop.body) if s.op in EFFECTS for r in s.reads}
        self.readers: dict[Ref, list[Statement]] = {}
        for line in loop.body:
            if isinstance(line, Statement):
                for r in line.reads:
                    self.readers.setdefault(r, []).append(line)

    def alone(self, value: Ref) -> Statement | None:
        """The only reader of a value that its turn alone reads."""
        readers = self.readers.get(value, [])
        return readers[0] if self.uses.count[value] == 1 and len(readers) == 1 else None

    def worked_on(self, value: Ref) -> set[Ref]:
        """A value, and those that may be computed where it lies, each from the one before."""
        found = {value}
        while (s := self.alone(value)) is not None and _works_on(s) and s.args["self"] == value:
            found.add(value := s.target)
        return found

    def safe(self, first: int, own: set[Ref]) -> bool:
        """Whether nothing reads, from line `first` on which writes them, what `own` were a turn before.

        What waits for its turn is first what it was before the loop, and not in that memory.
        """
        memory = self.memory(own)
        if any(not own.isdisjoint(memory[v]) for v in memory if v in self.lent or v in self.inner):
            return False
        held, behind = set[Ref](), [*own]
        while behind:
            more = set(self.ends.get(behind.pop(), ())) - held
            held |= more
            behind += more
        values = {v for phi in held for v in (phi, *self.holders.get(phi, ()))}
        late = (v for v in values if self.uses.last.get(v, -1) >= first)
        return all(held.isdisjoint(memory.get(v, self.uses.of(v))) for v in late)

    def memory(self, own: set[Ref]) -> dict[Ref, frozenset[Ref]]:
        """The memories of `own`, and of what may be in it."""
        found = {r: frozenset(own) for r in own}
        behind, seen = [*own], set(own)
        views: list[Statement] = []
        while behind:
            for s in self.views.get(behind.pop(), ()):
                if s.target not in seen:
                    seen.add(s.target)
                    behind.append(s.target)
                    views.append(s)
        for s in sorted(views, key=lambda s: self.uses.place[s.target]):
            found[s.target] = frozenset().union(*(found.get(r, self.uses.of(r)) for r in s.reads))
        return found


def _works_on(s: Statement) -> bool:
    """Whether a statement may be written onto the memory of its first argument."""
    return s.over or s.op in (ADD, MUL, "aten.neg.default") or definition(s.op).from_result


@functools.cache
def out_variant(op: str) -> tuple[str, str] | None:
    """The overload of an operator that writes into memory, and its argument for that; None where it makes a copy."""
    if not op.startswith("aten.") or len(overload(op)._schema.returns) != 1:
        return None
    own = [(a.name, str(a.type)) for a in overload(op)._schema.arguments]
    packet = getattr(torch.ops.aten, op.split(".")[1])
    for name in packet.overloads():
        schema = getattr(packet, name)._schema
        written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        rest = [(a.name, str(a.type)) for a in schema.arguments if a not in written]
        if len(written) == 1 and written[0].kwarg_only and rest == own and (op == LINEAR or _has_kernel(schema)):
            return f"aten.{op.split('.')[1]}.{name}", written[0].name
    return None


def writing_kernel(name: str, op: str) -> str:
    """A function of a file that runs an operator as torch's own functions run theirs: `out=` is a tensor or None."""
    variant = out_variant(op)
    assert variant is not None
    return f'''
def {name}(*args, out=None, **named):
    """{op.removesuffix(".default")}, into `out` where that is a tensor."""
    if out is None:
        return torch.ops.{op}(*args, **named)
    return torch.ops.{variant[0]}(*args, {variant[1]}=out, **named)
'''


def _has_kernel(schema: torch.FunctionSchema) -> bool:
    name = f"{schema.name}.{schema.overload_name}"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"))
