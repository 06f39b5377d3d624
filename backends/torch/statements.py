"""Code as data, in single assignment: what the lowering writes, the optimiser changes and the printer prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import torch

from pccompile.ir import Arg, Program, Ref, lengths, refs
from pccompile.ops import OPS, definition, overload

MIX, PICK, SEVERAL = "mix", "pick", "several"
"""Operations on lists of values, see `Statement`."""
Matrix = tuple[tuple[float, ...], ...]
Key = tuple[str, str]
"""What a result or a carried value is: a slot, such as `error` or `output`, and of what."""


class Role(Enum):
    """What a value is in the program. It decides how the value is printed; what the value is called decides nothing."""

    PREDICTION = auto()
    VALUE = auto()
    ERROR = auto()
    GRADIENT = auto()
    SUM = auto()
    SCRATCH = auto()


@dataclass(frozen=True, slots=True)
class Label:
    """What a reader should see a value called, and what it is. A sum under way has the role SUM until it has a name."""

    text: str
    role: Role = Role.SCRATCH


ROLES = {
    "prediction": Role.PREDICTION,
    "value": Role.VALUE,
    "error": Role.ERROR,
    "minus_error": Role.ERROR,
    "gradient": Role.GRADIENT,
}


def label_of(slot: str, name: str) -> Label:
    """The label of a slot of a vertex, a parameter or an input."""
    return Label(f"{slot}_{name}", ROLES.get(slot, Role.SCRATCH))


@dataclass(eq=False)
class Statement:
    """`target = op(args)`. Besides the operations of the dialect, `op` may be

    leaf       args: table ("params", "inputs", "buffers") and key: an entry of a table of the model
    given      args: text: Python source of one of the function's arguments or a part of it; table and key, where it is
               an entry of one. Or of an expression over `numbers`; names: those among them that loops around it count
    alias      args: of: the same tensor under a second name
    copy       args: table, key, of: writes into an entry of a table of the model; has no target
    keep       args: table, key, of: puts a tensor in the place of an entry; has no target
    update     args: paths, gradients: calls the function that changes the parameters; has no target
    exchange   args: number, told: tells neighbours these values; a list of what they tell
    several    args: of: a list of values
    mix        args: matrix, lists: for each row of weights, the sum of all members of lists, as a list; with `one`, the
               sum of the only row as a tensor. In a block, `matrix` may be the name that it has there
    pick       args: of, index: a member of a list
    call       args: values: hands them to `block`, each with its own `words` in the places where runs differ; the
               target is the one value that comes back, or all of them

    even: every tensor that it reads is known to have the result's shape, so that the result fits in its memory
    into: the argument whose memory the result is written to
    since: the turn of its loop from which on it is computed
    keeps: what the target is before that turn; without it, nothing reads the target then
    over: the result may take the memory of the first argument, where nothing else reads that
    block: the function that is called
    reuses: the value whose memory of the turn before the result may take: its own target, or its first argument
    owner: whose slot it computes, where that is not the vertex: a leaf, or a vertex whose comment comes later
    each: the lists among its arguments: it stands for as many statements as these have members, and makes a list
    """

    target: Ref
    op: str
    args: Mapping[str, Arg]
    vertex: str = ""
    even: bool = False
    into: Ref | None = None
    since: int = 0
    keeps: Ref | None = None
    over: bool = False
    block: Block | None = None
    reuses: Ref | None = None
    owner: str = ""
    each: tuple[Ref, ...] = ()

    @property
    def reads(self) -> tuple[Ref, ...]:
        """The values that the statement needs."""
        return (*refs(self.args.values()), *([self.keeps] if self.keeps else []))

    @property
    def lengths(self) -> tuple[str, ...]:
        """The free dimensions that the statement is written with."""
        return tuple(lengths(self.args.values()))


@dataclass(eq=False)
class Block:
    """A run of statements that a function repeats, as a function of its own. It is written as the first run is.

    values: what it is handed, in the order of a call's. owned: those of them whose memory nothing else reads; freed:
    those that nobody else has; taken: those that it takes from the end of the context itself. returned: what it hands
    back. stored: results, by key, that it puts into tables of results, at `places`; copied: those that it copies. keys:
    how the keys of tables are written in it that differ from run to run. words: the names that these give to what
    differs. headings: the comments above vertices. tables: those that it reads or writes. more: lengths and the like,
    by the names that they have in the function around it.
    """

    name: str
    about: str
    lines: list[Statement]
    values: tuple[Ref, ...]
    owned: frozenset[Ref]
    returned: tuple[Ref, ...]
    stored: Mapping[Key, Ref]
    places: Mapping[Key, tuple[str, str]]
    copied: frozenset[Key]
    keys: Mapping[tuple[str, str], str]
    words: tuple[str, ...]
    headings: Mapping[str, str]
    labels: Mapping[Ref, Label]
    tables: tuple[str, ...]
    taken: tuple[Ref, ...] = ()
    freed: frozenset[Ref] = frozenset()
    more: tuple[str, ...] = ()


@dataclass(eq=False)
class Carried:
    """A value that a loop hands from step to step: `phi` is `start` in the first step and `next` afterwards.

    copied: the loop writes over it, so that it begins with a copy of `start`.
    """

    phi: Ref
    start: Ref
    next: Ref
    copied: bool = False


@dataclass(eq=False)
class Stop:
    """Leave a loop after `least` steps or later, when ‖move‖ ≤ below · ‖against‖ for every pair."""

    pairs: list[tuple[Ref, Ref]]
    below: str
    least: int


@dataclass(frozen=True, slots=True)
class Turns:
    """What a loop runs over: `times` turns, or `rows` of numbers called `names`. paced: neighbours say how many."""

    times: str = ""
    names: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()
    paced: bool = False

    def head(self, counter: str) -> list[str]:
        """The lines that open the loop."""
        if not self.names:
            return [f"for {counter} in {'neighbours.turns' if self.paced else 'range'}({self.times}):"]
        rows = (f"    ({', '.join(map(repr, row))}{',' * (len(row) == 1)})," for row in self.rows)
        return [f"for {', '.join(self.names)}{',' * (len(self.names) == 1)} in (", *rows, "):"]


@dataclass(eq=False)
class Loop:
    """A loop over `turns`. `record` is what a trace of inference is shown after each step, `stop` ends it early."""

    turns: Turns
    carried: list[Carried]
    body: list[Line]
    record: dict[Key, Ref] = field(default_factory=dict)
    stop: Stop | None = None

    @property
    def shown(self) -> list[Ref]:
        """The values that are read at the end of each step: by a trace, and to know whether to stop."""
        return [*self.record.values(), *(r for pair in (self.stop.pairs if self.stop else ()) for r in pair)]

    @property
    def reads(self) -> tuple[Ref, ...]:
        """The values that the loop needs from outside or hands on."""
        inside = made_in(self.body) | {c.phi for c in self.carried}
        wanted = [r for line in self.body for r in line.reads]
        wanted += [r for c in self.carried for r in (c.start, c.next)]
        return tuple(r for r in (*wanted, *self.shown) if r not in inside)


Line = Statement | Loop
EFFECTS = ("copy", "keep", "update", "exchange")
"""Statements that are there for what they change; but for the last, they have no target."""


def statements_of(lines: Iterable[Line]) -> Iterator[Statement]:
    """Every statement, those in loops included."""
    for line in lines:
        yield from statements_of(line.body) if isinstance(line, Loop) else (line,)


def loops_of(lines: Iterable[Line]) -> Iterator[Loop]:
    """Every loop, those in loops included."""
    for line in lines:
        if isinstance(line, Loop):
            yield line
            yield from loops_of(line.body)


def made_in(lines: Sequence[Line]) -> set[Ref]:
    """The values that lines make, those in loops and those that loops carry included."""
    carried = {c.phi for loop in loops_of(lines) for c in loop.carried}
    return {s.target for s in statements_of(lines)} | carried


@dataclass
class Function:
    """The lines of one function, and the values that it returns."""

    lines: list[Line] = field(default_factory=list)
    results: dict[Key, Ref] = field(default_factory=dict)

    def statements(self) -> Iterator[Statement]:
        """Every statement, those in loops included."""
        return statements_of(self.lines)

    def needs(self) -> set[Ref]:
        """The values that the function reads and does not make."""
        wanted = {r for line in self.lines for r in line.reads} | set(self.results.values())
        return wanted - made_in(self.lines)


@dataclass
class Lowered:
    """The functions of a generated file.

    `labels` says what values are called, `made` where prediction has the values of the graph, `context` what it hands
    on.
    """

    program: Program
    predict: Function
    infer: Function
    learn: Function
    sweep: Function
    labels: dict[Ref, Label]
    made: dict[str, Ref] = field(default_factory=dict)
    context: list[Ref] = field(default_factory=list)


def fresh(s: Statement, made: Mapping[Ref, Statement]) -> bool:
    """Whether a statement makes memory of its own.

    torch does not say it of functions that are made of others: `atleast_1d` may return what it is given. Members of
    lists are not told from one another.
    """
    if s.each:
        return False
    if s.op == "getitem":
        source = made.get(s.args["of"])
        return source is not None and source.op.startswith("aten.") and fresh(source, made)
    if not s.op.startswith("aten.") or definition(s.op).wiring:
        return False
    if s.op not in OPS and overload(s.op).has_kernel_for_dispatch_key(torch.DispatchKey.CompositeImplicitAutograd):
        return False
    return all(r.alias_info is None for r in overload(s.op)._schema.returns)


def sole(value: Ref, made: Mapping[Ref, Statement], reads: Mapping[Ref, int], returned: Mapping[Ref, int]) -> bool:
    """Whether a result has memory that no other result and no argument has: optimizers write into gradients.

    reads: how often statements and loops read each value. returned: how many results each one is.
    """
    alone = returned[value] == 1 and not reads.get(value)
    source = made.get(value)
    while source and definition(source.op).wiring and source.op != "aten.expand.default":
        base = source.args.get("self")
        alone = alone and isinstance(base, Ref) and reads.get(base) == 1
        source = made.get(Ref(base)) if alone else None
    return alone and source is not None and fresh(source, made)
