"""Which lines of a generated file are whose: recorded as they are printed, so that nothing has to read them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import dedent

from pccompile.backends.torch.statements import Carried, Key, Statement
from pccompile.ir import Ref

UNOWNED = ("leaf", "call")
"""Statements that belong to nobody: many read them."""


class CodeLine(str):
    """A line that knows its `owners`, vertices and leaves whose slots it computes, and the lines that it is `within`.

    The latter open the loops and conditions around it, the outermost first.
    """

    owners: tuple[str, ...] = ()
    within: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, owners: Iterable[str], within: Iterable[str]) -> CodeLine:
        """`text` as a line of these owners."""
        line = cls(text)
        line.owners, line.within = tuple(owners), tuple(within)
        return line


class Ownership:
    """Whose the lines are that one function's printer writes."""

    def __init__(self, made: Mapping[Ref, Statement]) -> None:
        self.made = made
        self.owners: tuple[str, ...] = ()
        self.loops: tuple[str, ...] = ()
        self.condition: tuple[str, ...] = ()
        self.inside: dict[Ref, tuple[str, ...]] = {}
        """For what is written where it is read, whose that is."""

    def begin(self, s: Statement) -> None:
        """What follows computes `s` and what is written in it."""
        own = () if s.op in UNOWNED else tuple(filter(None, (s.owner or s.vertex,)))
        self.owners = tuple(dict.fromkeys([*own, *(o for r in s.reads for o in self.inside.get(r, ()))]))
        self.inside[s.target] = ()

    def inline(self, s: Statement) -> None:
        """`s`, which has begun, is written where it is read."""
        self.inside[s.target] = () if s.op == "given" else self.owners

    def carry(self, c: Carried) -> None:
        """What follows hands a carried value on."""
        s = self.made.get(c.next)
        self.owners = tuple(filter(None, ((s.owner or s.vertex) if s else "",)))

    def nobody(self) -> None:
        """What follows belongs to no vertex."""
        self.owners = ()

    def lines(self, texts: Iterable[str], conditional: bool) -> list[CodeLine]:
        """Lines of whatever has begun; conditional: under the condition that was opened last."""
        within = (*self.loops, *(self.condition if conditional else ()))
        return [CodeLine.of(text, self.owners, within) for text in texts]


@dataclass(frozen=True)
class SourceMap:
    """Where in a generated file the slots of each vertex, parameter and input are computed.

    lines: by function and owner, the numbers of the lines, from 1, those that open loops around them included.
    results: by function and result, a slot and its owner, the expression that is returned. functions: where each
    function is, from its first line to the last empty one behind it.
    """

    lines: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)
    results: Mapping[tuple[str, Key], str] = field(default_factory=dict)
    functions: Mapping[str, range] = field(default_factory=dict)

    def numbers(self, function: str, *owners: str) -> tuple[int, ...]:
        """The lines of a function that belong to any of `owners`."""
        return tuple(sorted({n for o in owners for n in self.lines.get((function, o), ())}))

    def without(self, text: str, *functions: str) -> str:
        """`text`, the file that this is the map of, without these functions."""
        left_out = {n for f in functions for n in self.functions.get(f, ())}
        rows = (row for n, row in enumerate(text.splitlines(), 1) if n not in left_out)
        return "\n".join(rows).rstrip() + "\n"

    def excerpt(self, text: str, function: str, *owners: str) -> str:
        """These lines of `text`, the file that this is the map of, without what all are indented by; they parse."""
        rows = text.split("\n")
        return dedent("\n".join(rows[n - 1] for n in self.numbers(function, *owners)))


def source_map(
    parts: Sequence[tuple[str, Sequence[str]]], first: int, between: int, results: Mapping[tuple[str, Key], str]
) -> SourceMap:
    """The map of a file whose functions are `parts`, with `between` lines between them, the first at line `first`."""
    found: dict[tuple[str, str], set[int]] = {}
    at, functions = first, dict[str, range]()
    for function, lines in parts:
        start = at
        places: dict[int, int] = {}
        for line in lines:
            places[id(line)] = at
            if isinstance(line, CodeLine):
                for owner in line.owners:
                    numbers = (at, *(places[id(opening)] for opening in line.within))
                    found.setdefault((function, owner), set()).update(numbers)
            at += line.count("\n") + 1
        at += between
        functions[function] = range(start, at)
    return SourceMap({key: tuple(sorted(numbers)) for key, numbers in found.items()}, dict(results), functions)
