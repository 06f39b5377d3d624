"""Runs of statements, and when two of them are the same but for what their values and keys are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pccompile.backends.torch.spell import weights_text
from pccompile.backends.torch.statements import (
    MIX,
    Function,
    Key,
    Label,
    Line,
    Statement,
    fresh,
    sole,
)
from pccompile.backends.torch.writer import is_parameter
from pccompile.ir import Arg, Fragment, Ref

Entry = tuple[str, str]
"""An entry of a table: the table and the key."""
ALONE = ("clamp", "clamp_constants", "update", "exchange", "call", "pcc.when")
"""Statements that are part of no run."""
KEYED = ("leaf", "copy", "keep", "given")
"""Statements that name an entry of a table."""


class Uses:
    """Who reads the values of a function, and where they are made.

    places: under which entry of a table each of the results stands that a run may put there itself. kept: values that
    must have a name in the function. apart: whether each result must have memory of its own.
    """

    def __init__(
        self,
        f: Function,
        labels: Mapping[Ref, Label],
        places: Mapping[Key, Entry],
        kept: Collection[Ref],
        apart: bool,
    ) -> None:
        self.f, self.labels, self.apart = f, labels, apart
        self.made = {s.target: s for s in f.statements()}
        self.home: dict[Ref, int] = {}
        self.reads: Counter[Ref] = Counter([*f.results.values(), *kept])
        self._count(f.lines, 0)
        self.read_by_statements = self.reads - Counter([*f.results.values(), *kept])
        self.returned = Counter(f.results.values())
        self.stores: dict[Ref, list[Key]] = {}
        for key, value in f.results.items():
            if key in places and self.home.get(value) == 0:
                self.stores.setdefault(value, []).append(key)
        self.places = places
        named = {*kept, *f.results.values()}
        self.anywhere = {r for r, s in self.made.items() if (is_parameter(s) or _is_entry(s)) and r not in named}
        """Values that are entries of tables which nothing writes to: they can be read where they are needed."""

    def _count(self, lines: Sequence[Line], home: int) -> None:
        for line in lines:
            if isinstance(line, Statement):
                self.home[line.target] = home
                self.reads.update(line.reads)
                continue
            self.reads.update(r for c in line.carried for r in (c.start, c.next))
            self.reads.update(line.shown)
            self._count(line.body, id(line))

    def entry(self, s: Statement) -> Entry:
        """The entry that a statement names."""
        return s.args["table"], s.args["key"]

    def owns(self, value: Ref) -> bool:
        """Whether nothing but the one statement that reads a value can see its memory."""
        source = self.made.get(value)
        return source is not None and self.reads[value] == 1 and fresh(source, self.made)

    def copies(self, value: Ref) -> bool:
        """Whether a result is to be copied, lest two results share memory."""
        own = self.made[value].op == "given" or sole(value, self.made, self.read_by_statements, self.returned)
        return self.apart and not own


def _is_entry(s: Statement) -> bool:
    return s.op == "given" and "table" in s.args


def may_repeat(s: Statement) -> bool:
    """Whether a statement may be part of a run: it waits for no turn, and depends on nothing but what it reads."""
    if s.op in ALONE or s.since or s.keeps or (s.op == "given" and "table" not in s.args):
        return False
    return not any(isinstance(a, Fragment) for a in s.args.values())


@dataclass
class Run:
    """Statements that stand in a row: `values` are what they read of others, `entries` what they name in tables.

    first: entries of tables that are read before the rest, as statements. returned: what others read of theirs.
    weights: those of sums of members of lists, as text, which may differ too.
    `form` is equal for two runs whose statements are the same but for what values and keys are called.
    """

    statements: list[Statement]
    uses: Uses
    values: dict[Ref, int] = field(default_factory=dict)
    entries: dict[Entry, int] = field(default_factory=dict)
    first: dict[Ref, Statement] = field(default_factory=dict)
    vertices: dict[str, int] = field(default_factory=dict)
    inner: dict[Ref, int] = field(default_factory=dict)
    weights: dict[Ref, str] = field(default_factory=dict)
    form: Hashable = None

    def __post_init__(self) -> None:
        inside = Counter(r for s in self.statements for r in s.reads)
        parts: list[Hashable] = []
        for s in self.statements:
            parts.append(self._statement(s))
            self.inner[s.target] = len(self.inner)
        uses = self.uses
        stored = {r: tuple(self._entry(uses.places[k]) for k in uses.stores.get(r, ())) for r in self.inner}
        self.returned = tuple(r for r in self.inner if uses.reads[r] > inside[r] + len(stored[r]))
        self.owned = frozenset(r for r in self.values if inside[r] == 1 and uses.owns(r) and self._is_beside(r))
        parts.append(tuple((r in self.owned, uses.labels[r].role if r in self.owned else None) for r in self.values))
        parts.append(tuple((self.inner[r], stored[r], uses.copies(r)) for r in self.inner if stored[r]))
        parts.append(tuple(self.inner[r] for r in self.returned))
        self.form = tuple(parts)

    def _is_beside(self, value: Ref) -> bool:
        """Whether a value is made in the same lines as the run is."""
        return self.uses.home.get(value) == self.uses.home[self.statements[0].target]

    @property
    def stored(self) -> Iterator[tuple[Key, Ref]]:
        """The results that the run can put into a table itself."""
        for r in self.inner:
            for key in self.uses.stores.get(r, ()):
                yield key, r

    def _statement(self, s: Statement) -> Hashable:
        args = dict(s.args)
        named: Hashable = None
        if s.op in KEYED:
            named = self._entry(self.uses.entry(s))
            args = {k: a for k, a in args.items() if k not in ("table", "key", "text")}
        if s.op == MIX:
            self.weights[s.target] = weights_text(args)
            del args["matrix"]
        values = tuple((k, self._arg(a)) for k, a in args.items())
        each = tuple(map(self._value, s.each))
        into = self._value(s.into) if s.into else None
        vertex = self.vertices.setdefault(s.vertex, len(self.vertices))
        return s.op, named, values, each, into, vertex, s.even, s.over, self.uses.labels[s.target].role

    def _entry(self, entry: Entry) -> Hashable:
        return entry[0], self.entries.setdefault(entry, len(self.entries))

    def _arg(self, arg: Arg) -> Hashable:
        if isinstance(arg, Ref):
            return self._value(arg)
        return tuple(map(self._arg, arg)) if isinstance(arg, tuple) else constant(arg)

    def _value(self, value: Ref) -> Hashable:
        if value in self.inner:
            return "inner", self.inner[value]
        if value in self.uses.anywhere:
            s = self.first[value] = self.uses.made[value]
            return s.op, self._entry(self.uses.entry(s))
        return "value", self.values.setdefault(value, len(self.values))


def constant(arg: Arg) -> Hashable:
    """A literal, such that two are equal only where they are written alike: not 1, 1.0 and True, nor 0.0 and -0.0."""
    return type(arg), repr(arg) if isinstance(arg, float | complex) else arg


def outline_of(s: Statement, uses: Uses) -> Hashable:
    """What equal statements have in common wherever they stand: all but which values and keys they read."""
    differ = ("table", "key", "text") if s.op in KEYED else ("matrix",) if s.op == MIX else ()
    args = {k: a for k, a in s.args.items() if k not in differ}
    values = tuple((k, _blank(a, uses)) for k, a in args.items())
    table = s.args["table"] if s.op in KEYED else ""
    return (
        s.op,
        table,
        values,
        bool(s.each),
        s.into is None,
        s.even,
        s.over,
        uses.labels[s.target].role,
        s.target in uses.stores,
    )


def _blank(arg: Arg, uses: Uses) -> Hashable:
    if isinstance(arg, Ref):
        return uses.made[arg].op if arg in uses.anywhere else "value"
    return tuple(_blank(a, uses) for a in arg) if isinstance(arg, tuple) else constant(arg)
