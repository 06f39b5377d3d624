"""Which statements are written where they are read, as part of another's expression."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.spell import passes_on
from pccompile.backends.torch.statements import EFFECTS, MIX, SEVERAL, Line, Role, Statement, fresh
from pccompile.ir import Ref
from pccompile.ops import definition

OWN_LINE = ("alias", "clamp", "clamp_constants", "call", *EFFECTS)
"""Statements that always have a line of their own."""
DEEPEST = 16
"""So many statements are written inside one another at most: Python's own parser gives up at some hundred."""


class Nesting:
    """Which values of a function have no line of their own. named: values that must have a name."""

    def __init__(self, flow: Dataflow, named: Collection[Ref]) -> None:
        self.flow, self.named = flow, named
        self.writes_before: dict[Ref, int] = {}
        """How many statements before each one write over what they read."""
        writes = 0
        for s in flow.f.statements():
            self.writes_before[s.target] = writes
            writes += bool(s.into) + (sum(bool(inner.into) for inner in s.block.lines) if s.block else 0)

    def nested(self) -> set[Ref]:
        """The values that have no line of their own, none written inside more than DEEPEST others."""
        found: set[Ref] = set()
        depth: dict[Ref, int] = {}
        for s in self.flow.f.statements():
            depth[s.target] = 1 + max((depth[r] for r in s.reads if r in found), default=0)
            if depth[s.target] <= DEEPEST and self._reads_well_inside(s) and not self._overtaken(s):
                found.add(s.target)
        return found

    def _overtaken(self, s: Statement) -> bool:
        """Whether memory is written to between a statement that computes something and the one that reads it."""
        writes = self.writes_before[s.target]
        return fresh(s, self.flow.made) and any(
            r and self.writes_before[r.target] != writes for r in self.flow.readers.get(s.target, ())
        )

    def _reads_well_inside(self, s: Statement) -> bool:
        if s.target in self.named or s.keeps or s.op in OWN_LINE:
            return False
        readers = self.flow.readers.get(s.target, [])
        if (s.op == "leaf" and s.args["table"] == "params") or (s.op == MIX and passes_on(s.args)):
            return True
        if len(readers) != 1:
            return s.op == "given" and str(s.args["text"]).isidentifier()
        if s.args.get("clone"):
            return False
        reader = readers[0]
        if reader is not None and (s.each or reader.each):
            return self._within_each(s, reader)
        if reader is None or (s.op == "given" and "[" in str(s.args["text"])):
            return False
        if s.op in ("given", "leaf"):
            return True
        if self.flow.block_of[reader.target] != self.flow.block_of[s.target] or reader.op in ("alias", *EFFECTS):
            return False
        if self.flow.labels[s.target].role in (Role.ERROR, Role.PREDICTION, Role.VALUE):
            return False
        wired = definition(s.op).wiring
        single = reader.op == "getitem" and s.op != "getitem"
        return wired or single or s.op == "getitem" or self._absorbed(s, reader) or self._scaled(s)

    def _within_each(self, s: Statement, reader: Statement) -> bool:
        """Whether what is done to each member of a list is written inside of what else is done to it."""
        if self.flow.block_of[reader.target] != self.flow.block_of[s.target]:
            return False
        if s.each:
            wired = definition(s.op).wiring
            return bool(reader.each) and (wired or reader.op == "getitem" or self._absorbed(s, reader))
        return s.op in ("leaf", SEVERAL) or (s.op == MIX and len(reader.each) == 1)

    def _scaled(self, s: Statement) -> bool:
        """Whether a statement is a product with a number of a loop."""
        factor = self.flow.made.get(s.args["self"]) if s.op == "aten.mul.Tensor" else None
        return factor is not None and bool(factor.args.get("names"))

    def _absorbed(self, s: Statement, reader: Statement) -> bool:
        """Whether the reader is an in-place step that takes a fresh operand as it is."""
        if reader.op == "aten.neg.default" or (
            reader.op == "aten.mul.Tensor" and isinstance(reader.args["other"], float)
        ):
            return fresh(s, self.flow.made) and self.flow.labels[reader.target].role is Role.GRADIENT
        return s.op == "aten.mm.default" and reader.op == "aten.add.Tensor" and reader.args["other"] == s.target


def last_reads(lines: Sequence[Line], nested: Collection[Ref]) -> dict[Ref, int]:
    """Where each value is read for the last time; one that is `nested` is read where its reader is."""
    found: dict[Ref, int] = {}
    for i, line in enumerate(lines):
        for r in line.reads:
            found[r] = i
        if isinstance(line, Statement):
            found.setdefault(line.target, i)
    for line in reversed(lines):
        if isinstance(line, Statement) and line.target in nested:
            for r in line.reads:
                found[r] = max(found[r], found[line.target])
    return found
