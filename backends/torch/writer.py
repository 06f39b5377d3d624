"""Writes statements. Equal operations on equal values are written once; what does not move in a loop, before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pccompile.backends.torch.code import quoted
from pccompile.backends.torch.statements import (
    EFFECTS,
    MIX,
    PICK,
    SEVERAL,
    Carried,
    Key,
    Label,
    Line,
    Loop,
    Role,
    Statement,
    Stop,
    Turns,
    label_of,
)
from pccompile.ir import Arg, Ref
from pccompile.ops import bind, definition

LATE = 2**31
"""The turn from which on a value is computed that nothing reads."""


@dataclass
class _Level:
    """A loop under way: the lines in front of it, what moves in it, values and numbers, and whether parameters do."""

    outer: list[Line]
    moving: set[Ref]
    numbers: tuple[str, ...]
    learns: bool


@dataclass
class LoopState:
    """What a loop carries at the end of a step, and what else happens there."""

    values: dict[Key, Ref]
    record: dict[Key, Ref] = field(default_factory=dict)
    stop: Stop | None = None


def is_parameter(statement: Statement) -> bool:
    """Whether a statement reads a parameter from the model's table."""
    return statement.op == "leaf" and statement.args["table"] == "params"


class Writer:
    """Appends statements to one function after another; `labels` says what a reader should see a value called."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.labels: dict[Ref, Label] = {}
        self.known: dict[object, Ref] = {}
        self.made: dict[Ref, Statement] = {}
        self.vertex = ""
        self.owner = ""
        """Whose slot is being computed, where it is not the vertex's: see Statement."""
        self.since = 0
        """The turn from which on what is written in a loop is needed."""
        self.lists: set[Ref] = set()
        """The values that are lists: what is computed of one is computed of each of its members."""
        self._levels: list[_Level] = []
        self._count = 0

    def fresh(self, label: Label) -> Ref:
        """A new value's name."""
        self._count += 1
        name = Ref(f"v{self._count}")
        self.labels[name] = label
        return name

    def __call__(self, op: str, *args: Arg, label: Label | None = None, **kwargs: Arg) -> Ref:
        """The value of `op(args)`, arguments as the operator's schema has them and of one shape."""
        return self.call(op, bind(op, args, kwargs), label or Label(op.split(".")[1]), even=True)

    def call(self, op: str, args: Mapping[str, Arg], label: Label, even: bool = False) -> Ref:
        """The value of `op(args)`, written unless it is there already."""
        key = (op, tuple((type(a), a) for a in args.values()))
        random = definition(op).random
        if key not in self.known or random:
            self.known[key] = self.write(op, args, label, even)
        return self.known[key]

    def write(self, op: str, args: Mapping[str, Arg], label: Label, even: bool = False) -> Ref:
        """Append `op(args)`: before all loops that we are in and in which nothing that it reads moves."""
        statement = Statement(self.fresh(label), op, args, self.vertex, even, owner=self.owner)
        self.made[statement.target] = statement
        if through := tuple(r for r in dict.fromkeys(statement.reads) if r in self.lists):
            statement.each = () if op in (MIX, PICK, "alias") else through
            statement.even = even and not statement.each
        if op == SEVERAL or (op == MIX and not args["one"]) or (through and op not in (MIX, PICK)):
            self.lists.add(statement.target)
        stays = op in EFFECTS or definition(op).random
        depth = len(self._levels) if stays else self._depth(statement)
        if depth < len(self._levels):
            self._levels[depth].outer.append(statement)
        else:
            statement.since = self.since
            self.lines.append(statement)
        if depth:
            self._levels[depth - 1].moving.add(statement.target)
        return statement.target

    def _depth(self, statement: Statement) -> int:
        """How many of the loops that we are in a statement has to stay in."""
        read = set(statement.reads)
        for depth in range(len(self._levels), 0, -1):
            level = self._levels[depth - 1]
            if read & level.moving or (level.learns and is_parameter(statement)):
                return depth
            if statement.op == "given" and set(statement.args["names"]) & set(level.numbers):
                return depth
        return 0

    def keep(self, value: Ref, old: Ref, label: Label) -> Ref:
        """`value` from the turn `since` on, and before that turn `old`, which is the same then."""
        last = self.lines[-1] if self.lines else None
        if not (isinstance(last, Statement) and last.target == value and last.since == self.since and not last.keeps):
            last = Statement(self.fresh(label), "alias", {"of": value}, self.vertex, since=self.since, owner=self.owner)
            self.made[last.target] = last
            self.lines.append(last)
            self._levels[-1].moving.add(last.target)
        last.keeps = old
        return last.target

    def leaf(self, table: str, key: str, label: Label) -> Ref:
        """An entry of one of the model's tables."""
        return self.call("leaf", {"table": table, "key": str(key)}, label)

    def given(self, text: str, label: Label, numbers: Sequence[str] | None = None) -> Ref:
        """What the function is given, as Python source; or an expression over `numbers`, those of loops among them."""
        moving = {n for level in self._levels for n in level.numbers}
        names = tuple(n for n in numbers or () if n in moving)
        read = None if numbers is None else tuple(numbers)
        return self.call("given", {"text": text, "names": names, "numbers": read}, label)

    def entry(self, table: str, key: str, label: Label) -> Ref:
        """An entry of a table that the function is handed."""
        text = f"{table}[{quoted(key)}]"
        return self.call("given", {"text": text, "names": (), "table": table, "key": str(key)}, label)

    def name(self, value: Ref, label: Label) -> Ref:
        """`value` under the name `label`: its own, if it has just been made, else an alias."""
        if self.labels[value] == label:
            return value
        for lines in (self.lines, *(level.outer for level in reversed(self._levels))):
            last = lines[-1] if lines else None
            if isinstance(last, Statement) and last.target == value and last.op != "leaf":
                last.vertex, last.owner = self.vertex, self.owner
                while value in self.made and (value == last.target or self.labels[value].role is Role.SUM):
                    self.labels[value] = label
                    first = self.made[value].args.get("self")
                    value = first if self.made[value].op == "aten.add.Tensor" and isinstance(first, Ref) else Ref("")
                return last.target
        return self.write("alias", {"of": value}, label)

    @contextmanager
    def loop(self, turns: Turns, starts: Mapping[Key, Ref], learns: bool = False) -> Iterator[LoopState]:
        """A loop that carries a value for each key of `starts`; what `state` holds at the end is handed on.

        learns: parameters change in it, so that nothing which is computed from them is true for more than one step.
        """
        phis = {(slot, name): self.fresh(label_of(slot, name)) for slot, name in starts}
        if learns:
            self.forget_parameters()
        level = _Level(self.lines, set(phis.values()), turns.names, learns)
        self._levels.append(level)
        self.lines = []
        state = LoopState(dict(phis))
        yield state
        carried = [Carried(phis[k], starts[k], state.values[k]) for k in starts]
        compute_in_time(self.lines, [*state.values.values(), *state.record.values()])
        self.known = {k: v for k, v in self.known.items() if v not in level.moving}
        body, self.lines = self.lines, level.outer
        self._levels.pop()
        if self._levels:
            self._levels[-1].moving |= level.moving
        self.lines.append(Loop(turns, carried, body, state.record, state.stop))

    def forget_parameters(self) -> None:
        """From here on parameters are read anew, and so is all that is computed from them."""
        old: dict[Ref, bool] = {}
        waiting = list(self.known.values())
        while waiting:
            value = waiting[-1]
            statement = self.made.get(value)
            reads = statement.reads if statement else ()
            if missing := [r for r in reads if r not in old]:
                waiting += missing
                continue
            waiting.pop()
            old[value] = bool(statement and is_parameter(statement)) or any(old[r] for r in reads)
        self.known = {k: v for k, v in self.known.items() if not old[v]}

    def take(self) -> list[Line]:
        """The lines written so far; writing goes on in another function."""
        lines, self.lines, self.owner = self.lines, [], ""
        return lines


def compute_in_time(body: list[Line], shown: Sequence[Ref]) -> None:
    """Let each statement of a loop be computed as soon as one that reads it, or what is `shown` behind the turn."""
    made = {s.target: s for s in body if isinstance(s, Statement)}
    for r in shown:
        if r in made and not made[r].keeps:
            made[r].since = 0
    for line in reversed(body):
        since = line.since if isinstance(line, Statement) else 0
        for r in line.reads:
            if r in made and not made[r].keeps:
                made[r].since = min(made[r].since, since)
