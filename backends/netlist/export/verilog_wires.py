"""Expressions of a circuit with hardware for every synapse: states, synapses, and what arrives at a unit."""

from __future__ import annotations

from collections.abc import Mapping

from pccompile.backends.netlist.export.datapath import Datapath, Term, tabulated
from pccompile.backends.netlist.export.verilog_text import Identifiers, literal, scaled, word, wrapped


class Wires:
    """The expressions of a datapath. lookups: the functions of populations that read a table."""

    def __init__(self, path: Datapath, identifiers: Identifiers, lookups: Mapping[str, str]) -> None:
        self.path, self.id, self.lookups = path, identifiers, lookups

    def state(self, name: str, unit: int, delay: int = 0) -> str:
        """What holds the state of a unit, some ticks ago."""
        return f"{self.id('s', name)}[{unit}]" if not delay else f"{self.id(f'd{delay}', name)}[{unit}]"

    def product(self, term: Term, number: int) -> str:
        """The summand of one synapse."""
        s = term.synapses
        factors = [] if term.a is None else [self.state(term.a, int(s.pre[number]), term.delay)]
        if term.param is not None and s.other is not None:
            entry = int(s.other[number])
            plastic = term.param in self.path.rules
            value = self.path.integers[term.param][entry]
            factors.insert(0, f"{self.id('w', term.param)}[{entry}]" if plastic else literal(value))
        elif term.b is not None and s.other is not None:
            factors.append(self.state(term.b, int(s.other[number]), term.delay))
        text = " * ".join(factors)
        if term.by is not None and s.winner is not None and s.slot is not None:
            return f"({self.id('k', term.by)}[{int(s.winner[number])}] == {int(s.slot[number])} ? {text} : 2'sd0)"
        return text

    def term(self, term: Term, name: str) -> tuple[list[str], list[str]]:
        """Declarations, and what the term adds to each unit."""
        size = self.path.spec.populations[name].size
        rows = [[self.product(term, s) for s in row] for row in term.synapses.rows(size)]
        if all(len(row) <= 1 for row in rows) or term.factor == 0:
            return [], [scaled(row[0], term.factor, term.shift) if row else "" for row in rows]
        sums = self.id("m", f"{term.name}")
        bits = (term.bound // abs(term.factor)).bit_length() + 1
        lines = [f"  wire signed [{bits - 1}:0] {sums} [0:{size - 1}];"]
        lines += [
            wrapped(f"  assign {sums}[{i}] = ", row or ["2'sd0"], " + ", ";") for i, row in enumerate(rows)
        ]  # fmt: skip
        return lines, [scaled(f"{sums}[{i}]", term.factor, term.shift) if row else "" for i, row in enumerate(rows)]

    def arriving(self, name: str, port: str, total: str) -> str:
        """What the format of a port holds of the sum there."""
        return f"sat{self.path.formats.ports[name, port][0]}({total})"

    def map(self, name: str, u: str) -> str:
        """What a function makes of the sum that arrives."""
        population, (total, fraction) = self.path.spec.populations[name], self.path.formats.states[name]
        if tabulated(population):
            return f"{self.lookups[name]}({u})"
        high = word(min(1 << fraction, (1 << total - 1) - 1), total)
        if population.function == "relu(x)":
            shift = self.path.relu_shift(name)
            same = self.path.formats.ports[name, "in"] == (total, fraction)
            positive = u if same else f"sat{total}({scaled(u, 1, shift)})"
        else:
            positive = f"{total}'sh{high}"
        return f"{u} > 0 ? {positive} : {total}'sd0"
