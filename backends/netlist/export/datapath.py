"""A netlist as whole numbers: what hardware adds, multiplies, shifts and saturates, and how wide it must be.

The numbers are those of `simulate.fixed`; both forms of Verilog are printed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from pccompile.backends.netlist.format import Plasticity, Population, Projection, Spec, order, ports_of
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import Synapses, bias_entries
from pccompile.backends.netlist.simulate.fixed import EXACT_FUNCTIONS, table
from pccompile.backends.netlist.simulate.formats import (
    TABLE,
    Formats,
    check,
    decaying,
    guard_bits,
    halvings,
    integers,
    product_shift,
    scaling,
    stepping,
)
from pccompile.backends.netlist.synapses import changes, synapses


@dataclass(frozen=True)
class Term:
    """A sum of products that is scaled and added to a port, or to a parameter: shr(factor · Σ a · b, shift).

    a: the population that is read, None for the number 1. param or b: the parameter, or the second population, that it
    is multiplied with; neither for the number 1. negative: it is taken away. bound: of |factor · Σ a · b|.
    """

    name: str
    synapses: Synapses
    factor: int
    shift: int
    bound: int
    a: str | None
    param: str | None = None
    b: str | None = None
    by: str | None = None
    delay: int = 0
    phase: str = ""
    negative: bool = False

    @property
    def arriving(self) -> int:
        """The bound of what is added."""
        return self.bound << -self.shift if self.shift <= 0 else (self.bound >> self.shift) + 1


@dataclass(frozen=True)
class Table:
    """A lookup table: entry clamp((u >> shift) + 2^(log − 1), 0, 2^log − 1), a shift to the left where negative."""

    function: str
    log: int
    shift: int
    entries: tuple[int, ...]


class Datapath:
    """All of a netlist in whole numbers.

    terms: by population and port. rules: by parameter. integers: of the parameters. tables: of map populations.
    """

    def __init__(self, net: Netlist) -> None:
        """Raises CompileError for what fixed point cannot do, ValueError for a combinational cycle."""
        self.spec: Spec = net.spec
        self.tensors: Mapping[str, np.ndarray] = net.tensors
        self.order = order(self.spec)
        self.formats = Formats.of(self.spec, self.tensors)
        check(self.spec, self.tensors, self.formats, 1)
        self.integrators = tuple(n for n, p in self.spec.populations.items() if p.unit == "integrator")
        self.inputs = tuple(n for n, p in self.spec.populations.items() if p.unit == "input")
        self.terms: dict[tuple[str, str], list[Term]] = {
            (name, port): [] for name, p in self.spec.populations.items() for port in ports_of(p.unit)
        }
        for p in self.spec.projections:
            if self.spec.populations[p.target].unit != "select":
                self.terms[p.target, p.port].append(self._term(p))
        for name, population in self.spec.populations.items():
            if population.bias is not None and population.unit == "sum":
                self.terms[name, "in"].append(self._bias(name, population))
        self.rules: dict[str, list[Term]] = {}
        for rule in self.spec.plasticity:
            self.rules.setdefault(rule.param, []).extend(self._rule(rule))
        read = {t.param for t in self.all_terms()} | set(self.rules)
        self.integers: dict[str, list[int]] = {
            name: integers(torch.from_numpy(array), self.formats.params[name]).reshape(-1).to(torch.int64).tolist()
            for name, array in self.tensors.items()
            if name in read
        }
        self.tables = {n: self._table(n, p) for n, p in self.spec.populations.items() if tabulated(p)}

    def all_terms(self) -> Iterator[Term]:
        """The terms of all ports."""
        for terms in self.terms.values():
            yield from terms

    def sources(self, name: str) -> Projection:
        """The one projection of a select population."""
        return self.spec.into()[name][0]

    def halvings(self, name: str) -> int:
        """k of an integrator's rate 2^-k."""
        return halvings(name, self.spec.populations[name])

    def guard(self, name: str) -> int:
        """The guard bits of an integrator."""
        return guard_bits(name, self.spec.populations[name])

    def relu_shift(self, name: str) -> int:
        """The shift to the right that brings the sum at a map's port to the fraction of its state."""
        return self.formats.ports[name, "in"][1] - self.formats.states[name][1]

    def phases(self) -> tuple[str, ...]:
        """The phases in which parameters change."""
        return tuple(dict.fromkeys(t.phase for terms in self.rules.values() for t in terms))

    def synaptic(self) -> int:
        """The number of synapses whose sums are taken in a tick."""
        return sum(len(t.synapses.post) for t in self.all_terms())

    def width(self) -> int:
        """Bits that hold every number on the way, each operation's rounding included."""
        bounds = [2]
        for name, population in self.spec.populations.items():
            total = self.formats.states[name][0]
            arriving = [sum(t.arriving for t in self.terms[name, port]) for port in ports_of(population.unit)]
            bounds += [1 << total, *arriving]
            if population.unit == "product":
                both, shift = sum(self.formats.ports[name, port][0] for port in "xy"), product_shift(name, self.formats)
                bounds.append((1 << both - 2 + max(-shift, 0)) + (1 << max(shift, 0)))
            if population.unit == "map":
                inward, shift = self.formats.ports[name, "in"][0], self.relu_shift(name)
                bounds.append((1 << inward + max(-shift, 0)) + (1 << max(shift, 0)))
            if population.unit == "integrator":
                bounds.append((arriving[0] << self.guard(name)) + (1 << total + self.guard(name) + 1))
            if population.unit == "select":
                factor, shift = scaling(self.sources(name), self.formats)
                largest = self._largest(self.sources(name).pre) * abs(factor)
                bounds += [largest << max(-shift, 0), largest + (1 << max(shift - 1, 0))]
            if name in self.tables and self.tables[name].shift < 0:
                bounds.append(1 << self.formats.ports[name, "in"][0] - self.tables[name].shift)
        for t in self.all_terms():
            bounds.append(t.bound + (1 << max(t.shift - 1, 0)))
        for param, terms in self.rules.items():
            bounds += [t.bound + (1 << max(t.shift - 1, 0)) for t in terms]
            bounds.append(sum(t.arriving for t in terms) + (1 << self.formats.params[param][0]))
        return max(bounds).bit_length() + 1

    def _largest(self, name: str) -> int:
        return int(2 ** (self.formats.states[name][0] - 1))

    def _bounded(self, term: Term) -> Term:
        """The term with the bound of its sum."""
        most = int(np.bincount(term.synapses.post).max(initial=0)) if term.synapses.post.size else 0
        if term.by is not None and not self.spec.named()[term.name].transpose:
            most = min(most, 1)
        largest = self._largest(term.a) if term.a is not None else 1
        if term.param is not None and term.synapses.other is not None:
            largest *= 2 ** (self.formats.params[term.param][0] - 1)
        if term.b is not None:
            largest *= self._largest(term.b)
        return replace(term, bound=most * largest * abs(term.factor))

    def _term(self, p: Projection) -> Term:
        factor, shift = scaling(p, self.formats)
        found = synapses(p, self.spec, self.tensors).sorted()
        return self._bounded(
            Term(p.name, found, factor, shift, 0, p.pre, param=p.param, b=p.with_, by=p.by, delay=p.delay)
        )  # fmt: skip

    def _bias(self, name: str, population: Population) -> Term:
        entries = bias_entries(population.shape, population.bias_axis)
        units = np.arange(population.size)
        shift = self.formats.params[str(population.bias)][1] - self.formats.states[name][1]
        return self._bounded(
            Term(f"bias {population.bias}", Synapses(units, units, entries), 1, shift, 0, None, param=population.bias)
        )

    def _rule(self, rule: Plasticity) -> Iterator[Term]:
        factor, shift = stepping(rule, self.formats)
        name = f"{rule.rule} of {rule.post}" + (f" and {rule.pre}" if rule.pre is not None else "")
        found = changes(rule, self.spec, self.tensors)
        yield self._bounded(Term(name, found, factor, shift, 0, rule.post, b=rule.pre, phase=rule.phase))
        if rule.decay:
            entries = np.arange(self.tensors[rule.param].size)
            factor, shift = decaying(rule)
            found = Synapses(entries, entries, entries)
            yield self._bounded(
                Term("decay", found, factor, shift, 0, None, param=rule.param, phase=rule.phase, negative=True)
            )

    def _table(self, name: str, p: Population) -> Table:
        log, reach = p.table or TABLE
        entries = tuple(int(v) for v in table(p, self.formats.states[name]).tolist())
        return Table(str(p.function), log, self.formats.ports[name, "in"][1] + reach + 1 - log, entries)


def tabulated(p: Population) -> bool:
    """Whether a population looks its states up."""
    return p.unit == "map" and p.function not in EXACT_FUNCTIONS
