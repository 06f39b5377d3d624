"""Vertices that carry many errors at once carry them as lists: what is done to each of a list is written once.

A program that gives a vertex several slots by messages, one by one, has lines for each. Where they are many, the slots
of a vertex become one list, a message a line that goes through the list of a child, and the weights of their sums a
matrix. Then layers differ in numbers only, however many errors each carries, and share a function.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch

from pccompile.backends.torch.message_sums import Term, end_alike, larger, total
from pccompile.backends.torch.statements import MIX, PICK, SEVERAL, Label, Matrix, label_of
from pccompile.backends.torch.terms import Terms
from pccompile.ir import Do, PCGraph, Program, Ref, Step, Vertex

Row = Mapping[str, float]
"""Slots of a vertex with weights."""
ALIKE = 4
"""So many vertices that are alike are written once."""
MOST, LEAST = 10, 150
"""Errors are lists where so many times as many messages are written without them, and so many more."""


def listable(steps: Sequence[Step]) -> bool:
    """Whether slots of a phase of a program can be lists: a vertex has several by messages, and none in a loop."""
    owners = [s.vertex for s in steps if isinstance(s, Do) and _is_sent(s)]
    return len(owners) > len({*owners}) and all(isinstance(s, Do) for s in steps)


def shorter_by_lists(program: Program) -> bool:
    """Whether a file is much shorter with lists: judged before any line is written, by how many messages are."""
    phases = [phase for phase in (program.infer, program.sweep) if listable(phase)]
    counts = [_written(phase, program.pc) for phase in phases]
    return any(counts) and all(alone >= MOST * max(lists, 1) and alone - lists >= LEAST for alone, lists in counts)


def _written(steps: Sequence[Step], pc: PCGraph) -> tuple[int, int]:
    """How many messages are written with a name for each error, and as lists. What `ALIKE` vertices have in common is
    written once: what their children do to messages, and, with names, how many errors they are made of."""
    rules = {v.name: tuple(n.op for n in v.rules) for v in pc.vertices}
    by_owner: dict[str, list[Mapping[str, Row]]] = {}
    for s in steps:
        if isinstance(s, Do) and not isinstance(s.carries, str) and s.equation == "pull":
            by_owner.setdefault(s.vertex, []).append({c: row for c, row in s.carries.items() if row})
    kinds: tuple[Counter[Hashable], Counter[Hashable]] = (Counter(), Counter())
    messages: dict[Hashable, int] = {}
    for owner, rows in by_owner.items():
        children = sorted({c for row in rows for c in row}, key=lambda c: rules.get(c, ()))
        sends = tuple(rules.get(c, ()) for c in children)
        sizes = tuple(tuple(len(row.get(c, ())) for row in rows) for c in children)
        own = (rules.get(owner), sends, tuple(sorted(sizes))), sends
        for kind, table, count in zip(own, kinds, (sum(map(len, rows)), len(children)), strict=True):
            table[kind] += 1
            messages[kind] = count
    alone, lists = (sum((n if n < ALIKE else 1) * messages[k] for k, n in table.items()) for table in kinds)
    return alone, lists


def groups(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """`steps`, those together that give slots of one vertex by messages."""
    group: list[Step] = []
    for s in steps:
        if group and not _belong(group[-1], s):
            yield group
            group = []
        group.append(s)
    if group:
        yield group


def _belong(a: Step, b: Step) -> bool:
    return isinstance(a, Do) and isinstance(b, Do) and a.vertex == b.vertex and _is_sent(a) and _is_sent(b)


def _is_sent(d: Do) -> bool:
    return d.equation == "pull" and not isinstance(d.carries, str)


class Lists:
    """The lists that vertices have by now, each with the slots that are its members."""

    def __init__(self, terms: Terms) -> None:
        self.terms, self.w = terms, terms.w
        self.of: dict[str, tuple[Ref, tuple[str, ...]]] = {}
        self.double = any(v.type.dtype in (torch.float64, torch.complex128) for v in terms.pc.vertices)

    def give(self, group: Sequence[Step]) -> bool:
        """Give a vertex the slots of a group as one list; False, and nothing is done, where they cannot be one."""
        dos = [s for s in group if isinstance(s, Do) and _is_sent(s)]
        owner = self.terms.vertices.get(dos[0].vertex) if dos else None
        rows = [{c: row for c, row in d.carries.items() if row} for d in dos if not isinstance(d.carries, str)]
        if owner is None or not all(rows):
            return False
        self.w.vertex, self.w.owner = owner.name, ""
        sent = [
            self._message(child, owner, dos[0], [row.get(child.name, {}) for row in rows])
            for child in self.terms.children[owner.name]
            if any(child.name in row for row in rows)
        ]
        groups = [[term] for term, _ in sent]
        matrices = [matrix for _, matrix in sent]
        unit = _unit(range(len(dos)), len(dos))
        if all(m == unit for m in matrices) and end_alike([term for term, _ in sent]):
            groups, matrices = [[term for term, _ in sent]], [unit]
        label = Label(f"{_plural(dos[0].slot)}_{owner.name}")
        lists = [total(self.w, terms) for terms in groups]
        if matrices == [unit]:
            whole = self.w.name(lists[0], label)
        else:
            whole = self._sums(tuple(sum(row, ()) for row in zip(*matrices, strict=True)), lists, label)
        self.of[owner.name] = whole, tuple(d.slot for d in dos)
        for i, d in enumerate(dos):
            label = label_of(d.slot, owner.name)
            self.terms.slots[owner.name, d.slot] = self.w.call(PICK, {"of": whole, "index": i}, label)
        return True

    def _message(self, child: Vertex, owner: Vertex, d: Do, rows: Sequence[Row]) -> tuple[Term, Matrix]:
        """What a child sends, a list, and what each row takes of it: as few messages as rows or slots of the child."""
        members, slots = self._members(child.name, rows)
        matrix = tuple(tuple(row.get(s, 0.0) for s in slots) for row in rows)
        taken = [i for i, row in enumerate(matrix) if any(row)]
        sent = [j for j in range(len(slots)) if any(row[j] for row in matrix)]
        label = Label(f"sums_{child.name}")
        if len(sent) < len(taken) or (len(sent) == len(taken) and larger(child.type, owner.type)):
            sums = self._sums(_unit(sent, len(slots)), [members], label)
            return self.terms.message(child, sums, d), tuple(tuple(row[j] for j in sent) for row in matrix)
        sums = self._sums(tuple(matrix[i] for i in taken), [members], label)
        places = _unit(taken, len(rows))
        return self.terms.message(child, sums, d), tuple(zip(*places, strict=True))

    def _members(self, child: str, rows: Sequence[Row]) -> tuple[Ref, tuple[str, ...]]:
        """A list that has all these slots of a child as members, and the slots of its members."""
        if child in self.of:
            return self.of[child]
        slots = tuple(dict.fromkeys(s for row in rows for s in row))
        values = tuple(self.terms.slots[child, s] for s in slots)
        return self.w.call(SEVERAL, {"of": values}, Label(f"errors_{child}")), slots

    def _sums(self, matrix: Matrix, lists: Sequence[Ref], label: Label) -> Ref:
        """For each row of weights the sum of the members of lists, also where a list is what they come to: layers of
        which that is true and others share functions."""
        matrix = tuple(tuple(map(self._short, row)) for row in matrix)
        return self.w.call(MIX, {"matrix": matrix, "lists": tuple(lists), "one": False}, label)

    def sum(self, vertex: str, weights: Row) -> Ref | None:
        """The sum of slots of a vertex with weights; None where they are not members of its list."""
        if vertex not in self.of or not weights.keys() <= {*self.of[vertex][1]}:
            return None
        members, slots = self.of[vertex]
        if [*weights.values()] == [1.0]:
            return self.terms.slots[vertex, next(iter(weights))]
        row = tuple(self._short(weights.get(s, 0.0)) for s in slots)
        args = {"matrix": (row,), "lists": (members,), "one": True}
        return self.w.call(MIX, args, Label(f"error_{vertex}"))

    def _short(self, weight: float) -> float:
        """A weight in as many digits as torch reads of it, where all tensors are of single precision or less."""
        return weight if self.double else float(str(np.float32(weight)))

    def equation(self, vertex: str, e: ast.expr) -> Ref | None:
        """The value of an equation that is a sum of slots of the vertex's list with weights; None for another."""
        weights = _weights(e)
        return self.sum(vertex, weights) if weights else None


def _weights(e: ast.expr) -> dict[str, float]:
    """What names a sum adds up with which weights; nothing for another expression, or a name alone."""
    match e:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [_weights(p) or ({p.id: 1.0} if isinstance(p, ast.Name) else {}) for p in (left, right)]
            apart = all(parts) and not parts[0].keys() & parts[1].keys()
            return parts[0] | parts[1] if apart else {}
        case ast.BinOp(left=ast.Constant(value=float(factor)), op=ast.Mult(), right=ast.Name(id=name)):
            return {name: factor}
        case ast.BinOp(
            left=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=float(factor))),
            op=ast.Mult(),
            right=ast.Name(id=name),
        ):
            return {name: -factor}
    return {}


def _unit(rows: Sequence[int], count: int) -> Matrix:
    """Rows of the unit matrix of so many columns."""
    return tuple(tuple(float(i == j) for j in range(count)) for i in rows)


def _plural(slot: str) -> str:
    """What the list of a vertex is called that has this slot as its first member."""
    return "minus_errors" if slot.startswith("minus_") else "errors"
