"""The order in which one multiplier walks through a netlist: passes over units, steps within a unit."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pccompile.backends.netlist.export.datapath import Datapath, Term, tabulated
from pccompile.backends.netlist.format import Population, ports_of
from pccompile.backends.netlist.operations import Synapses
from pccompile.backends.netlist.simulate.formats import product_shift, scaling

KINDS = ("SUM", "RELU", "STEP", "TABLE", "PRODUCT", "INTEGRATE", "COMMIT", "LEARN", "LARGEST", "SMALLEST")
"""What is done with the ports of a unit once they are added up."""

OPERANDS = ("BY_ONE", "BY_PARAMETER", "BY_STATE", "BY_WINNER")
"""What a state is multiplied with."""

Name = TypeVar("Name", bound=Hashable)

DRAIN = 5
"""Clocks from the last synapse of a pass to its last result."""

Affine = tuple[int, int, int, int]
"""The address base + row·a + column·b + slot·c."""


@dataclass(frozen=True)
class Step:
    """A sum of `slots` products for one unit: addresses that follow from counters, or a list of them.

    entries: (nothing there, address of the state, address of the other operand, slot), `[unit, slot, 4]`. A unit that
    chooses goes through its candidates in rounds, each for the next in rank; a 1 for the other operand begins one.
    """

    name: str
    slots: int
    entries: np.ndarray
    x: Affine | None
    y: Affine | None
    one: bool
    operand: str
    factor: int
    shift: int
    negative: bool
    port: int

    @property
    def listed(self) -> bool:
        """Whether the addresses are read from a list."""
        return self.x is None


@dataclass(frozen=True)
class Pass:
    """The same steps for each of rows × columns units, and what becomes of their sums.

    target, accumulator: the addresses of unit 0. total: bits of the result; totals: of the sums at the ports, where
    they are others. rescale: the shift from the fraction of what the ports hold to that of the result. phase: the
    number of the phase it belongs to, none for every tick.
    """

    name: str
    kind: str
    target: int
    rows: int
    columns: int
    steps: tuple[Step, ...]
    total: int
    accumulator: int = 0
    fraction: int = 0
    guard: int = 0
    halvings: int = 0
    leak: int = 0
    table: tuple[int, int, int] = (0, 0, 0)
    totals: tuple[int, ...] = ()
    rescale: int = 0
    phase: int | None = None

    @property
    def clocks(self) -> int:
        """How long it takes."""
        return self.rows * self.columns * sum(s.slots for s in self.steps) + DRAIN + 1


@dataclass
class Schedule:
    """All passes of a tick, and where everything lies.

    states: the address of each population, and of its past states, by delay. winners: of select populations.
    """

    path: Datapath
    passes: list[Pass] = field(default_factory=list)
    states: dict[tuple[str, int], int] = field(default_factory=dict)
    accumulators: dict[str, int] = field(default_factory=dict)
    winners: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    tables: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay out memories and passes."""
        spec, delays = self.path.spec, dict.fromkeys(self.path.spec.populations, 0)
        for p in spec.projections:
            delays.update({n: max(delays[n], p.delay) for n in p.reads})
        places = [(n, d) for n in spec.populations for d in range(delays[n] + 1)]
        self.states, self.state_words = _laid_out(places, [spec.populations[n].size for n, _ in places])
        sizes = [spec.populations[n].size for n in self.path.integrators]
        self.accumulators, self.accumulator_words = _laid_out(self.path.integrators, sizes)
        selects = [n for n, p in spec.populations.items() if p.unit == "select"]
        self.winners, self.winner_words = _laid_out(selects, [spec.populations[n].size for n in selects])
        params = [*self.path.rules, *(n for n in self.path.integers if n not in self.path.rules)]
        self.parameters, self.parameter_words = _laid_out(params, [len(self.path.integers[n]) for n in params])
        tables = list(dict.fromkeys(t.entries for t in self.path.tables.values()))
        self.tables, self.table_words = _laid_out(tables, [len(t) for t in tables])
        self.passes = [*self._forward(), *self._learning(), *self._delaying(delays), *self._committing()]

    def clocks(self, phases: Sequence[int] = ()) -> int:
        """The clocks of a tick in which those phases are on."""
        return 1 + sum(p.clocks if p.phase is None or p.phase in phases else 1 for p in self.passes)

    def lists(self) -> list[np.ndarray]:
        """The list entries of each pass in the order in which they are used, `[entries, 4]`."""
        lists = []
        for p in self.passes:
            listed = [s.entries for s in p.steps if s.listed]
            lists.append(np.concatenate(listed, 1).reshape(-1, 4) if listed else np.zeros((0, 4), dtype=np.int64))
        return lists

    def _forward(self) -> Iterator[Pass]:
        for name in [*self.path.order, *self.path.integrators]:
            p = self.path.spec.populations[name]
            if p.unit == "select":
                yield self._select(name, p)
                continue
            terms = [(t, i) for i, port in enumerate(ports_of(p.unit)) for t in self.path.terms[name, port]]
            kind = {"sum": "SUM", "product": "PRODUCT", "integrator": "INTEGRATE"}.get(p.unit, "TABLE")
            more: dict[str, Any] = {}
            if p.unit == "integrator":
                more = {"accumulator": self.accumulators[name], "guard": self.path.guard(name),
                        "halvings": self.path.halvings(name), "leak": int(p.leak)}  # fmt: skip
            elif tabulated(p):
                table = self.path.tables[name]
                more = {"table": (self.tables[table.entries], table.log, table.shift)}
            elif p.unit == "map":
                kind, more["rescale"] = "RELU" if p.function == "relu(x)" else "STEP", self.path.relu_shift(name)
            elif p.unit == "product":
                more["rescale"] = product_shift(name, self.path.formats)
            more["totals"] = tuple(self.path.formats.ports[name, port][0] for port in ports_of(p.unit))
            yield self._pass(f"{name}: {p.unit}", kind, self.states[name, 0], p.size, p.shape, terms,
                             self.path.formats.states[name], None, more)  # fmt: skip

    def _select(self, name: str, p: Population) -> Pass:
        source = self.path.sources(name)
        index = self.path.tensors[str(source.index)]
        ranks = np.zeros(p.size, dtype=np.int64) if p.ranks is None else self.path.tensors[p.ranks].reshape(-1)
        rounds, slots = np.indices((int(ranks.max()) + 1, index.shape[1]))
        nothing = (index < 0)[:, None] | (rounds > ranks[:, None, None])
        again = (rounds > 0) & (slots == 0) & (rounds <= ranks[:, None, None])
        at = np.maximum(index, 0)[:, None] + self.states[source.pre, source.delay]
        columns = np.broadcast_arrays(nothing, at, again, slots)
        entries = np.stack(columns, -1).reshape(p.size, -1, 4)
        factor, shift = scaling(source, self.path.formats)
        step = Step(source.name, entries.shape[1], entries, None, None, False, "BY_ONE", factor, shift, False, 0)
        total, fraction = self.path.formats.states[name]
        return Pass(f"{name}: select", "LARGEST" if (source.gain < 0) == p.smallest else "SMALLEST",
                    self.states[name, 0], 1, p.size, (step,), total, self.winners[name], fraction)  # fmt: skip

    def _learning(self) -> Iterator[Pass]:
        for param, terms in self.path.rules.items():
            shape = self.path.tensors[param].shape
            yield self._pass(f"learn {param}", "LEARN", self.parameters[param], len(self.path.integers[param]), shape,
                             [(t, 0) for t in terms], self.path.formats.params[param],
                             self.path.phases().index(terms[0].phase), {})  # fmt: skip

    def _delaying(self, delays: dict[str, int]) -> Iterator[Pass]:
        for name, delay in delays.items():
            p = self.path.spec.populations[name]
            for d in range(delay, 0, -1):
                units = np.arange(p.size)
                term = Term(f"{name}, {d} ticks ago", Synapses(units, units), 1, 0, 0, name, delay=d - 1)
                yield self._pass(f"keep {name}", "SUM", self.states[name, d], p.size, p.shape, [(term, 0)],
                                 self.path.formats.states[name], None, {})  # fmt: skip

    def _committing(self) -> Iterator[Pass]:
        for name in self.path.integrators:
            p = self.path.spec.populations[name]
            more: dict[str, Any] = {
                "accumulator": self.accumulators[name],
                "guard": self.path.guard(name),
            }
            yield self._pass(f"latch {name}", "COMMIT", self.states[name, 0], p.size, p.shape, [],
                             self.path.formats.states[name], None, more)  # fmt: skip

    def _pass(
        self,
        name: str,
        kind: str,
        target: int,
        size: int,
        shape: Sequence[int],
        terms: Sequence[tuple[Term, int]],
        bits: tuple[int, int],
        phase: int | None,
        more: dict[str, Any],
    ) -> Pass:
        """A pass whose columns are chosen so that as many addresses as possible follow from the counters."""
        if not terms:
            units = np.arange(size)
            terms = [(Term("nothing", Synapses(units, np.zeros_like(units)), 0, 0, 0, None), 0)]
        tables = [self._entries(t, size) for t, _ in terms]
        choices = {size, *(int(np.prod(shape[i:])) for i in range(len(shape)))}
        choices |= {int(s) for t, _ in terms if t.param is not None for s in self.path.tensors[t.param].shape}
        divisors = [c for c in sorted(choices, reverse=True) if c and size % c == 0]

        def regular(columns: int) -> int:
            return sum(e[..., 0].size for e in tables if _regular(e, columns) is not None)

        columns = max(divisors, key=regular)
        steps = tuple(self._step(t, port, e, columns) for (t, port), e in zip(terms, tables, strict=True))
        total, fraction = bits
        return Pass(name, kind, target, size // columns, columns, steps, total, fraction=fraction, phase=phase, **more)

    def _entries(self, term: Term, size: int) -> np.ndarray:
        """Where each unit's operands lie, `[unit, slot, 4]`; units of fewer synapses have empty slots."""
        s = term.synapses
        rows = s.rows(size)
        entries = np.zeros((size, max([1, *map(len, rows)]), 4), dtype=np.int64)
        entries[..., 0] = 1
        at = np.concatenate([np.arange(len(r)) for r in rows]) if len(s.post) else np.zeros(0, dtype=np.int64)
        entries[s.post, at, 0] = 0
        if term.a is not None:
            entries[s.post, at, 1] = s.pre + self.states[term.a, term.delay]
        if term.by is not None and s.winner is not None and s.slot is not None:
            entries[s.post, at, 2], entries[s.post, at, 3] = s.winner + self.winners[term.by], s.slot
        elif term.param is not None and s.other is not None:
            entries[s.post, at, 2] = s.other + self.parameters[term.param]
        elif term.b is not None and s.other is not None:
            entries[s.post, at, 2] = s.other + self.states[term.b, term.delay]
        return entries

    @staticmethod
    def _step(term: Term, port: int, entries: np.ndarray, columns: int) -> Step:
        ways = _regular(entries, columns) if term.by is None else None
        x, y = ways if ways is not None else (None, None)
        operand = "BY_WINNER" if term.by is not None else "BY_ONE"
        if term.by is None and term.synapses.other is not None:
            operand = "BY_PARAMETER" if term.param is not None else "BY_STATE"
        return Step(term.name, entries.shape[1], entries, x, y, term.a is None, operand, term.factor, term.shift,
                    term.negative, port)  # fmt: skip


def _laid_out(names: Sequence[Name], sizes: Sequence[int]) -> tuple[dict[Name, int], int]:
    """The address of each name, one behind the other, and how many words there are."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return dict(zip(names, ends[:-1], strict=True)), ends[-1]


def _regular(entries: np.ndarray, columns: int) -> tuple[Affine, Affine] | None:
    """The addresses of both operands as functions of row, column and slot, if they are such."""
    if entries[..., 0].any():
        return None
    ways = [_affine(entries[..., i].reshape(-1, columns, entries.shape[1])) for i in (1, 2)]
    return None if ways[0] is None or ways[1] is None else (ways[0], ways[1])


def _affine(at: np.ndarray) -> Affine | None:
    """Base and strides of addresses `[row, column, slot]`, if they have such that are not negative."""
    base = int(at[0, 0, 0])
    row, column, slot = (int(at.take(1, i).flat[0]) - base if at.shape[i] > 1 else 0 for i in range(3))
    rows, columns, slots = (np.arange(n) for n in at.shape)
    same = bool((at == base + rows[:, None, None] * row + columns[:, None] * column + slots * slot).all())
    return (base, row, column, slot) if same and min(row, column, slot) >= 0 else None
