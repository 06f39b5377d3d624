"""Def-use chains: what makes each value of a function and in which block, who reads it, and whose memory it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from pccompile.backends.torch.statements import Function, Label, Line, Role, Statement, fresh, sole
from pccompile.ir import Ref
from pccompile.ops import definition


class Dataflow:
    """The def-use chains of one function.

    kept: values that it must keep besides its results. owned: what it is given whose memory it may write to.
    adds: whether sums are added up in the memory of their first term. A reader that is no statement, such as a loop
    that hands a value on, is None.
    """

    def __init__(self, f: Function, labels: Mapping[Ref, Label], kept: Iterable[Ref]) -> None:
        self.f, self.labels = f, labels
        self.returned = Counter(f.results.values())
        self.kept = {*self.returned, *kept}
        self.adds, self.owned = True, frozenset[Ref]()
        self.made = {s.target: s for s in f.statements()}
        self.readers: dict[Ref, list[Statement | None]] = {}
        self.block_of: dict[Ref, int] = {}
        self._scan(f.lines, 0)

    def _scan(self, lines: Sequence[Line], block: int) -> None:
        for line in lines:
            if isinstance(line, Statement):
                self.block_of[line.target] = block
                for r in line.reads:
                    self.readers.setdefault(r, []).append(line)
                continue
            for r in (*(r for c in line.carried for r in (c.start, c.next)), *line.shown):
                self.readers.setdefault(r, []).append(None)
            self._scan(line.body, id(line))

    def hand_over(self, owned: Collection[Ref]) -> None:
        """Give the function the memory of what it is given."""
        self.owned = frozenset(owned)
        self.block_of |= dict.fromkeys(owned, 0)

    def owns(self, value: Ref) -> bool:
        """Whether a result has memory that no other result and no argument has."""
        return sole(value, self.made, {r: len(readers) for r, readers in self.readers.items()}, self.returned)

    def is_own(self, value: Ref) -> bool:
        """Whether a value has memory of its own, is given with its memory, or is all that is left of such a value."""
        source = self.made.get(value)
        if value in self.owned or (source is not None and fresh(source, self.made)):
            return True
        if source is None or source.each or not definition(source.op).permutes:
            return False
        return self.alone(source.args["self"], source)

    def read_once_here(self, operand: Ref, reader: Statement) -> bool:
        """Whether an operand's memory is its own, read by one statement in the block that made it."""
        here = self.block_of.get(operand) == self.block_of[reader.target]
        return here and self.is_own(operand) and len(self.readers[operand]) == 1

    def alone(self, operand: Ref, reader: Statement) -> bool:
        """Whether a statement may write over an operand that is no prediction and no value."""
        mine = self.adds and self.read_once_here(operand, reader)
        return mine and self.labels[operand].role not in (Role.PREDICTION, Role.VALUE)
