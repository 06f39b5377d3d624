"""Repeated structure as functions of its own: what many layers have in common is written once, and called.

Runs of statements that repeat are found by what their operations and literals are, and taken as the same only where
everything agrees but what values and keys are called: see `runs`. The paths of a model's modules say where a run may
begin and what it is called, never whether two are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pccompile.backends.torch.repeats import Repeat, repeats
from pccompile.backends.torch.runs import KEYED, Run, Uses, may_repeat, outline_of
from pccompile.backends.torch.spell import result_count
from pccompile.backends.torch.statements import Block, Function, Key, Label, Line, Loop, Statement
from pccompile.backends.torch.words import Words, pattern, rest, spelled
from pccompile.diagnostics import listing, printable
from pccompile.ir import Ref
from pccompile.ir.names import Namer
from pccompile.ops import definition

SHORTEST = 3
"""A run has at least so many statements."""
ROOM = 5
"""About so many values fit on a line of a call."""
GAP = 3
"""So many statements a gap between two runs is worth: the empty lines around it, and what crosses it."""
SAMPLES = 4
"""Of so many runs at most the comments are compared."""


@dataclass(frozen=True)
class Outlining:
    """When runs become functions: where they repeat `least_calls` times, and a file is `least_lines` shorter for it."""

    least_calls: int = 4
    least_lines: int = 100


@dataclass
class Names:
    """What there is to be said of a function: its name, the comment above a vertex, and the module of a vertex."""

    function: str
    heading: Callable[[str], str]
    module: Callable[[str], str]
    headed: bool


@dataclass
class Outlined:
    """A function that calls its blocks.

    places: the names of the blocks that vertices are written in. saved: about how many lines shorter the function is.
    """

    function: Function
    labels: Mapping[Ref, Label]
    blocks: list[Block] = field(default_factory=list)
    places: Mapping[str, str] = field(default_factory=dict)
    saved: int = 0


def outline(f: Function, uses: Uses, names: Names, namer: Namer, least: Outlining) -> Outlined:
    """`f`, with its repeated runs as blocks. namer: names what is to stand at the top of the file."""
    pass_ = _Outline(uses, names, namer, least)
    lines = pass_.lines(f.lines)
    stored = {key for b in pass_.blocks for key in b.stored} | pass_.stored
    results = {k: v for k, v in f.results.items() if k not in stored}
    read = {r for line in lines for r in line.reads} | {*results.values()}
    lines = [x for x in lines if isinstance(x, Loop) or x.target in read or x.target not in uses.anywhere]
    return Outlined(Function(lines, results), {**uses.labels, **pass_.labels}, pass_.blocks, pass_.places, pass_.saved)


class _Outline:
    def __init__(self, uses: Uses, names: Names, namer: Namer, least: Outlining) -> None:
        self.uses, self.names, self.namer, self.least = uses, names, namer, least
        self.blocks: list[Block] = []
        self.labels: dict[Ref, Label] = {}
        self.stored: set[Key] = set()
        self.places: dict[str, str] = {}
        self.saved = 0

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """`lines` with calls where runs were, those of loops too."""
        lines = [replace(x, body=self.lines(x.body)) if isinstance(x, Loop) else x for x in unpacked(lines)]
        row = [x for x in lines if isinstance(x, Loop) or x.target not in self.uses.anywhere]
        calls: dict[Ref, list[Line]] = {}
        for runs in Rows(row, self.uses, self.least.least_calls, self.names.headed).runs():
            calls |= self.block(runs)
        return [y for x in lines for y in (calls.get(x.target, [x]) if isinstance(x, Statement) else [x])]

    def block(self, runs: Sequence[Run]) -> dict[Ref, list[Line]]:
        """A block for runs that are the same; by the target of a statement, what takes its place."""
        first, words = runs[0], Words(len(runs))
        columns = zip(*(run.entries for run in runs), strict=True)
        keys = {column[0]: words.template([key for _, key in column]) for column in columns}
        taken = Namer(self.namer.used)
        names = tuple(taken("block") for _ in words.columns)
        weights = self._weights(runs, taken)
        modules = [self._module(run) for run in runs]
        about = f"What {listing([printable(m, 40) for m in dict.fromkeys(modules)], 4)} have in common."
        block = Block(
            self._name(modules),
            about if len({*modules}) > 1 and all(modules) else "",
            [_of_block(s, weights) for s in (*first.first.values(), *first.statements)],
            tuple(first.values),
            first.owned,
            first.returned,
            dict(first.stored),
            {key: self.uses.places[key] for key, _ in first.stored},
            frozenset(k for k, r in first.stored if self.uses.copies(r)),
            {entry: spelled(t, names) for entry, t in keys.items() if any(isinstance(p, int) for p in t)},
            (*names, *weights.values()),
            self._headings(runs),
            self._labels(runs),
            tuple(dict.fromkeys(table for table, _ in first.entries)),
        )
        self.blocks.append(block)
        self.stored |= {key for run in runs for key, _ in run.stored}
        self.places |= {v: block.name for run in runs for v in run.vertices if v}
        self.saved += saved(first, len(runs), self.names.headed)
        calls: dict[Ref, list[Line]] = {}
        for run, texts in zip(runs, words.arguments(), strict=True):
            own = dict(zip(first.weights, run.weights.values(), strict=True))
            calls |= self._call(block, run, (*texts, *(own[r] for r in weights)))
        return calls

    def _weights(self, runs: Sequence[Run], taken: Namer) -> dict[Ref, str]:
        """By the sums of the first run, what their weights are called where these differ from run to run."""
        rows = zip(*(run.weights.values() for run in runs), strict=True)
        differ = (r for r, row in zip(runs[0].weights, rows, strict=True) if len({*row}) > 1)
        return {r: taken("weights") for r in differ}

    def _call(self, block: Block, run: Run, words: tuple[str, ...]) -> dict[Ref, list[Line]]:
        """By the target of a statement of a run, what takes its place: the call, and for the others nothing."""
        whole = run.returned[0] if len(run.returned) == 1 else Ref(f"call {run.statements[0].target}")
        call = Statement(whole, "call", {"values": tuple(run.values), "words": words}, block=block)
        lines: list[Line] = [call]
        if len(run.returned) != 1:
            self.labels[whole] = Label("call")
            lines += [Statement(r, "getitem", {"of": whole, "index": i}) for i, r in enumerate(run.returned)]
        return {s.target: [] for s in run.statements} | {run.statements[0].target: lines}

    def _name(self, modules: Sequence[str]) -> str:
        """What a block is called: as the paths of the modules are that its runs belong to, without what differs."""
        shared = rest(modules, "block") if all(modules) and len({*modules}) > 1 else "block"
        return self.namer(f"{self.names.function}_{shared}")

    def _labels(self, runs: Sequence[Run]) -> dict[Ref, Label]:
        """What the values of a block are called: what those of all runs have in common."""
        labels = self.uses.labels
        names = {r: labels[r] for r in runs[0].first}
        for refs in zip(*((*run.values, *run.inner) for run in runs), strict=True):
            names[refs[0]] = Label(rest([labels[r].text for r in refs]), labels[refs[0]].role)
        return names

    def _module(self, run: Run) -> str:
        """The innermost module that holds all vertices of a run."""
        paths = [path.split(".") for path in filter(None, map(self.names.module, filter(None, run.vertices)))]
        if not paths:
            return ""
        columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
        return ".".join(column[0] for column in columns)

    def _headings(self, runs: Sequence[Run]) -> dict[str, str]:
        """For each vertex of the first run, the comment that stands for all."""
        sample = runs[:: max(len(runs) // SAMPLES, 1)]
        rows = [[self.names.heading(v) if v else "" for v in run.vertices] for run in sample]
        texts = (pattern(column) for column in zip(*rows, strict=True))
        return {v: t if any(map(str.isalpha, t)) else "" for v, t in zip(runs[0].vertices, texts, strict=True)}


def _of_block(s: Statement, weights: Mapping[Ref, str]) -> Statement:
    """A statement of a run as a block has it. weights: what those of sums are called."""
    args = {**s.args, "matrix": weights[s.target]} if s.target in weights else s.args
    return replace(s, args=args, reuses=None)


def unpacked(lines: Sequence[Line]) -> list[Line]:
    """`lines`, the results of an operation that has several right behind it, as they are printed."""
    places = {x.target: i for i, x in enumerate(lines) if isinstance(x, Statement) and result_count(x.op)}
    order = [
        places.get(x.args["of"], i) if isinstance(x, Statement) and x.op == "getitem" else i
        for i, x in enumerate(lines)
    ]
    return [lines[i] for i in sorted(range(len(lines)), key=order.__getitem__)]


def worth(repeat: Repeat) -> int:
    """What a repeat is worth, before its runs are looked at: lines between two of its runs cost more than none."""
    gaps = sum(b - a > repeat.length for a, b in itertools.pairwise(repeat.places))
    return (len(repeat.places) - 1) * repeat.length - GAP * gaps


def saved(run: Run, count: int, headed: bool) -> int:
    """About how many lines fewer there are where a run is written once and called `count` times."""
    return (count - 1) * height(run, headed) - count * call_height(run) - 4


def height(run: Run, headed: bool) -> int:
    """About how many lines a run takes: one for a statement, half of them free a value, and three for a heading."""
    own = (s for s in run.statements if s.op not in (*KEYED, "getitem") and not definition(s.op).wiring)
    changes = sum(a.vertex != b.vertex for a, b in itertools.pairwise(run.statements))
    return sum(3 for _ in own) // 2 + (2 + 2 * changes if headed else 0)


def call_height(run: Run) -> int:
    """About how many lines a call of a run takes."""
    return 1 + (len(run.values) + len(run.returned)) // ROOM + len(run.weights)


class Rows:
    """Lines in a row, and the runs among them."""

    def __init__(self, row: Sequence[Line], uses: Uses, least: int, headed: bool) -> None:
        self.row, self.uses, self.least, self.headed = row, uses, least, headed
        known: dict[Hashable, int] = {}
        self.tokens = [
            known.setdefault(outline_of(x, uses), len(known)) if isinstance(x, Statement) and may_repeat(x) else -i - 1
            for i, x in enumerate(row)
        ]
        self.taken = [False] * len(row)

    def runs(self) -> list[list[Run]]:
        """Runs that are the same, those first that are worth most; none overlap."""
        groups: list[list[Run]] = []
        if len(self.row) < SHORTEST * self.least:
            return groups
        candidates = sorted(repeats(self.tokens, self.least, SHORTEST), key=worth, reverse=True)
        for candidate in candidates:
            runs = self.best(candidate)
            if len(runs) >= self.least and saved(runs[0], len(runs), self.headed) > 0:
                groups.append(runs)
        return groups

    def best(self, repeat: Repeat) -> list[Run]:
        """The runs of a repeat that are the same, shifted to where least has to be handed to and fro."""
        places = [p for p in repeat.places if not any(self.taken[p : p + repeat.length])]
        if len(places) < self.least:
            return []
        places = self.shifted(places, repeat.length)
        if len(places) < self.least:
            return []
        kinds: dict[Hashable, list[tuple[int, Run]]] = {}
        for p in places:
            run = self.run(p, repeat.length)
            kinds.setdefault(run.form, []).append((p, run))
        same = max(kinds.values(), key=len)
        if len(same) >= self.least and saved(same[0][1], len(same), self.headed) > 0:
            for p, _ in same:
                self.taken[p : p + repeat.length] = [True] * repeat.length
        return [run for _, run in same]

    def run(self, place: int, length: int) -> Run:
        """The statements from a place on."""
        return Run([x for x in self.row[place : place + length] if isinstance(x, Statement)], self.uses)

    def shifted(self, places: Sequence[int], length: int) -> list[int]:
        """`places`, all moved by as much, to where the runs have fewest values to hand to and fro."""
        middle = places[len(places) // 2]
        most = len(places) - len(places) // 8
        before, behind = (
            sorted((self.reach(p, middle, length, step) for p in places), reverse=True) for step in (-1, 1)
        )
        lowest, highest = -before[most - 1], behind[most - 1]
        shifts = range(lowest, highest + 1)
        best = min(shifts, key=lambda d: (self.cost(middle + d, length), not self.begins(middle + d), abs(d)))
        moved = (p + best for p in places if self.fits(p, middle, length, best))
        return [p for p in moved if not any(self.taken[p : p + length])]

    def reach(self, place: int, other: int, length: int, step: int) -> int:
        """How far a run can be moved and still be what another is that is moved as far."""
        a, b = (place - 1, other - 1) if step < 0 else (place + length, other + length)
        count = 0
        while count < length - 1 and min(a, b) >= 0 and max(a, b) < len(self.row):
            if self.tokens[a] != self.tokens[b] or self.tokens[a] < 0 or self.taken[a]:
                break
            a, b, count = a + step, b + step, count + 1
        return count

    def fits(self, place: int, other: int, length: int, shift: int) -> bool:
        """Whether a run is what another is once both are moved."""
        return self.reach(place, other, length, -1 if shift < 0 else 1) >= abs(shift)

    def begins(self, place: int) -> bool:
        """Whether another vertex begins at a place."""
        x, before = self.row[place], self.row[place - 1] if place else None
        return not (isinstance(x, Statement) and isinstance(before, Statement) and x.vertex == before.vertex)

    def cost(self, place: int, length: int) -> int:
        """How many values a run is handed and hands back."""
        run = self.run(place, length)
        return len(run.values) + len(run.returned)
