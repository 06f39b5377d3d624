"""SystemVerilog of a netlist with hardware for every synapse: one tick a clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pccompile.backends.netlist.export.datapath import Datapath, Term
from pccompile.backends.netlist.export.verilog_text import (
    Identifiers,
    comment,
    functions,
    header,
    lookups,
    scaled,
    word,
    wrapped,
)
from pccompile.backends.netlist.export.verilog_wires import Wires
from pccompile.backends.netlist.format import ports_of
from pccompile.backends.netlist.simulate.formats import product_shift, scaling


class Parallel:
    """The module `name` of a datapath. probes: the populations whose states leave it, besides the outputs."""

    def __init__(self, path: Datapath, name: str, probes: Sequence[str]) -> None:
        self.path, self.spec, self.probes = path, path.spec, tuple(probes)
        self.id, self.width = Identifiers(), path.width()
        self.module = self.id("pc", name)
        self.lookups = lookups(path, self.id)
        self.wires = Wires(path, self.id, self.lookups)
        self.delays: dict[str, int] = {}
        for p in self.spec.projections:
            self.delays.update({n: max(p.delay, self.delays.get(n, 0)) for n in p.reads})
        self.first: dict[str, int] = {}
        self.parameters = 0
        for param in path.rules:
            self.first[param] = self.parameters
            self.parameters += len(path.integers[param])
        self.picks = Picks()

    def text(self) -> str:
        """The whole file."""
        self.body = [part for name in self._in_order() for part in self._population(name)]
        parts = [
            header(f"{self.spec.name}: a predictive-coding circuit, one tick a clock", self._header()),
            "`default_nettype none",
            self._interface(),
            *functions(self.path, self.width, self.lookups),
            *self.picks.texts(),
            *self._parameters(),
            self._states(),
            *self._inputs(),
            *self.body,
            *self._outputs(),
            self._latches(),
            "endmodule\n`default_nettype wire\n",
        ]
        return "\n\n".join(parts)

    def _in_order(self) -> list[str]:
        return [*self.path.integrators, *self.path.order]

    def _header(self) -> Iterator[str]:
        formats = self.path.formats
        yield "While tick is 1 every clock is a tick: integrators take their next state."
        yield "Unit i of a bus of B-bit states is bits B*i to B*i + B - 1. rst is synchronous; it restores parameters."
        for phase in self.path.phases():
            yield f"While {self.id('phase', phase)} is 1 too, the parameters of phase {phase} change."
        yield ""
        for name, p in self.spec.populations.items():
            total, fraction = formats.states[name]
            yield f"{name}: {p.size} x {p.unit}, {total} bits, {fraction} fractional"
        for param, values in self.path.integers.items():
            total, fraction = formats.params[param]
            where = f", read at address {self.first[param]} on" if param in self.first else ", constant"
            yield f"{param}: {len(values)} entries, {total} bits, {fraction} fractional{where}"
        yield ""
        yield from (f"{count} {what}" for what, count in self.resources().items())

    @staticmethod
    def images() -> dict[str, str]:
        """Files beside the module: none, everything is in it."""
        return {}

    def resources(self) -> dict[str, int]:
        """What the circuit takes, before a synthesis tool shares or removes anything."""
        return resources(self.path, self.delays)

    def bus(self, name: str) -> str:
        """The range of the bits of all states of a population."""
        return f"[{self.path.formats.states[name][0] * self.spec.populations[name].size - 1}:0]"

    def observed(self) -> tuple[str, ...]:
        """The populations whose states leave the module."""
        outputs = [p.population for p in self.spec.outputs.values()]
        return tuple(dict.fromkeys([*outputs, *self.probes]))

    def _interface(self) -> str:
        ports = ["input wire clk", "input wire rst", "input wire tick"]
        ports += [f"input wire {self.id('phase', p)}" for p in self.path.phases()]
        ports += [f"input wire {self.bus(n)} {self.id('in', n)}" for n in self.path.inputs]
        ports += [f"output wire {self.bus(n)} {self.id('out', n)}" for n in self.observed()]
        if self.parameters:
            ports.append(f"input wire [{self.address_bits() - 1}:0] param_address")
            ports.append(f"output wire signed [{self.parameter_bits() - 1}:0] param_data")
        return f"module {self.module} (\n    " + ",\n    ".join(ports) + "\n);"

    def address_bits(self) -> int:
        """The bits of a parameter's address."""
        return max(1, (self.parameters - 1).bit_length())

    def parameter_bits(self) -> int:
        """The bits of the widest parameter."""
        return max(self.path.formats.params[p][0] for p in self.path.rules)

    def _parameters(self) -> Iterator[str]:
        for param in self.path.rules:
            total, count = self.path.formats.params[param][0], len(self.path.integers[param])
            yield f"  {comment(param)}\n  reg signed [{total - 1}:0] {self.id('w', param)} [0:{count - 1}];"
        if self.parameters:
            choices = [
                f"param_address < {self.first[p] + len(self.path.integers[p])} ? "
                f"{self.id('w', p)}[param_address - {self.first[p]}] :"
                for p in self.path.rules
            ]
            yield "  assign param_data =\n    " + "\n    ".join(choices) + f" {self.parameter_bits()}'sd0;"

    def _declared(self, name: str, prefix: str = "s", kind: str = "wire", more: int = 0) -> str:
        total, size = self.path.formats.states[name][0] + more, self.spec.populations[name].size
        return f"  {kind} signed [{total - 1}:0] {self.id(prefix, name)} [0:{size - 1}];"

    def _states(self) -> str:
        """The declarations of all states."""
        lines = []
        for name, p in self.spec.populations.items():
            lines.append(f"{self._declared(name)}  {comment(f'{name}: {p.unit}')}")
            if p.unit == "integrator":
                lines.append(self._declared(name, "acc", "reg", self.path.guard(name)))
                lines.append(self._declared(name, "next", more=self.path.guard(name)))
            if p.unit == "select":
                lines.append(f"  wire [{self.slot_bits(name) - 1}:0] {self.id('k', name)} [0:{p.size - 1}];")
            lines += [self._declared(name, f"d{d + 1}", "reg") for d in range(self.delays.get(name, 0))]
        return "\n".join(lines)

    def _inputs(self) -> Iterator[str]:
        for name in self.path.inputs:
            total = self.path.formats.states[name][0]
            yield "\n".join(
                f"  assign {self.id('s', name)}[{i}] = {self.id('in', name)}[{total * i} +: {total}];"
                for i in range(self.spec.populations[name].size)
            )

    def _population(self, name: str) -> Iterator[str]:
        """The wires of a population that is no input."""
        p, total = self.spec.populations[name], self.path.formats.states[name][0]
        what = p.unit if p.function is None else f"{p.unit} {p.function}"
        reads = ", ".join(t.name for port in ports_of(p.unit) for t in self.path.terms[name, port])
        lines = [f"  {comment(f'{name}: {what}. {reads}'[: 4 * 116])}"]
        if p.unit == "select":
            yield "\n".join([*lines, *self._select(name)])
            return
        ports = {
            port: [list(self.wires.term(t, name)) for t in self.path.terms[name, port]] for port in ports_of(p.unit)
        }
        lines += [text for terms in ports.values() for declarations, _ in terms for text in declarations]
        sums = {
            port: [" + ".join(rows[i] for _, rows in terms if rows[i]) or "2'sd0" for i in range(p.size)]
            for port, terms in ports.items()
        }
        if p.unit == "integrator":
            lines += self._integrator(name, sums["in"])
            yield "\n".join(lines)
            return
        for i in range(p.size):
            match p.unit:
                case "sum":
                    value = f"sat{total}({sums['in'][i]})"
                case "product":
                    x, y = (self.wires.arriving(name, port, sums[port][i]) for port in ("x", "y"))
                    value = f"sat{total}({scaled(f'{x} * {y}', 1, product_shift(name, self.path.formats))})"
                case _:
                    value = self.wires.map(name, self.wires.arriving(name, "in", sums["in"][i]))
            lines.append(wrapped(f"  assign {self.wires.state(name, i)} = ", value.split(" "), " ", ";"))
        yield "\n".join(lines)

    def _integrator(self, name: str, sums: Sequence[str]) -> Iterator[str]:
        guard, total = self.path.guard(name), self.path.formats.states[name][0]
        for i, port in enumerate(sums):
            held = f"{self.id('acc', name)}[{i}]"
            change = f"(({port}) <<< {guard})" if guard else port
            if self.spec.populations[name].leak:
                change += f" - {held}"
            value = f"sat{total + guard}({held} + {scaled(change, 1, self.path.halvings(name))})"
            yield wrapped(f"  assign {self.id('next', name)}[{i}] = ", value.split(" "), " ", ";")
            yield f"  assign {self.wires.state(name, i)} = sat{total}({scaled(held, 1, guard)});"

    def _select(self, name: str) -> Iterator[str]:
        p, source = self.spec.populations[name], self.path.sources(name)
        index = self.path.tensors[str(source.index)]
        ranks = np.zeros(p.size, int) if p.ranks is None else self.path.tensors[p.ranks].reshape(-1)
        bits = self.slot_bits(name)
        total = self.path.formats.states[name][0]
        factor, shift = scaling(source, self.path.formats)
        upwards, arriving = (source.gain < 0) == p.smallest, self.path.formats.states[source.pre][0]
        for i, row in enumerate(index):
            slots = [k for k, unit in enumerate(row) if unit >= 0]
            states = [self.wires.state(source.pre, int(row[k]), source.delay) for k in slots]
            pick = self.picks.named(Pick(tuple(slots), int(ranks[i]), upwards, bits, arriving))
            winner = f"{self.id('k', name)}[{i}]"
            chosen = " : ".join([*(f"{winner} == {k} ? {s}" for k, s in zip(slots[:-1], states[:-1], strict=True)),
                                 states[-1]])  # fmt: skip
            yield wrapped(f"  assign {winner} = {pick}(", states, ", ", ");")
            value = f"sat{total}({scaled(f'({chosen})', factor, shift)})"
            yield wrapped(f"  assign {self.wires.state(name, i)} = ", value.split(" "), " ", ";")

    def slot_bits(self, name: str) -> int:
        """The bits of the number of a select population's slots."""
        slots = self.path.tensors[str(self.path.sources(name).index)].shape[1]
        return max(1, int(slots - 1).bit_length())

    def _outputs(self) -> Iterator[str]:
        for name in self.observed():
            units = [self.wires.state(name, i) for i in reversed(range(self.spec.populations[name].size))]
            yield wrapped(f"  assign {self.id('out', name)} = {{", units, ", ", "};")

    def _latches(self) -> str:
        reset, ticked = [], []
        for name in self.path.integrators:
            for i in range(self.spec.populations[name].size):
                reset.append(f"{self.id('acc', name)}[{i}] <= 0;")
                ticked.append(f"{self.id('acc', name)}[{i}] <= {self.id('next', name)}[{i}];")
        for name, delay in self.delays.items():
            for d in range(1, delay + 1):
                for i in range(self.spec.populations[name].size):
                    reset.append(f"{self.id(f'd{d}', name)}[{i}] <= 0;")
                    ticked.append(f"{self.id(f'd{d}', name)}[{i}] <= {self.wires.state(name, i, d - 1)};")
        for param, terms in self.path.rules.items():
            total = self.path.formats.params[param][0]
            for i, value in enumerate(self.path.integers[param]):
                reset.append(f"{self.id('w', param)}[{i}] <= {total}'sh{word(value, total)};")
            ticked += self._learning(param, terms)
        return "\n".join(
            ["  always @(posedge clk)", "    if (rst) begin", *(f"      {r}" for r in reset),
             "    end else if (tick) begin", *(f"      {t}" for t in ticked), "    end"]
        )  # fmt: skip

    def _learning(self, param: str, terms: Sequence[Term]) -> Iterator[str]:
        size, total = len(self.path.integers[param]), self.path.formats.params[param][0]
        rows = [term.synapses.rows(size) for term in terms]
        for i in range(size):
            weight = f"{self.id('w', param)}[{i}]"
            value = weight
            for term, row in zip(terms, rows, strict=True):
                if row[i]:
                    sums = " + ".join(self.wires.product(term, s) for s in row[i])
                    change = scaled(f"({sums})" if len(row[i]) > 1 else sums, term.factor, term.shift)
                    value += f" {'-' if term.negative else '+'} ({self.id('phase', term.phase)} ? {change} : 2'sd0)"
            if value != weight:
                yield wrapped(f"{weight} <= ", f"sat{total}({value})".split(" "), " ", ";")


def resources(path: Datapath, delays: Mapping[str, int]) -> dict[str, int]:
    """What a circuit takes with hardware for every synapse. delays: the longest of what reads each population."""
    spec = path.spec
    registers = sum(path.formats.states[n][0] * spec.populations[n].size * d for n, d in delays.items())
    for n in path.integrators:
        registers += (path.formats.states[n][0] + path.guard(n)) * spec.populations[n].size
    registers += sum(path.formats.params[p][0] * len(path.integers[p]) for p in path.rules)
    units = sum(p.size for p in spec.populations.values() if p.unit == "product")
    forward = sum(len(t.synapses.post) for t in path.all_terms() if t.a is not None and t.param in path.rules)
    hebb = sum(len(t.synapses.post) for ts in path.rules.values() for t in ts if t.b is not None)
    products = sum(len(t.synapses.post) for t in path.all_terms() if t.b is not None)
    fixed = sum(len(t.synapses.post) for t in path.all_terms() if t.a and t.param and t.param not in path.rules)
    return {
        "multipliers": units + products + forward + hebb,
        "multiplications by constants": fixed,
        "register bits": registers,
        "lookups": sum(spec.populations[n].size for n in path.tables),
    }


class Pick(NamedTuple):
    """What a function that says which slot wins depends on; bits of a slot's number, total bits of a state."""

    slots: tuple[int, ...]
    rank: int
    upwards: bool
    bits: int
    total: int


class Picks(dict[Pick, str]):
    """The names of the functions that are needed so far."""

    def named(self, pick: Pick) -> str:
        """The name of the function for `pick`."""
        return self.setdefault(pick, f"pick_{len(self)}")

    def texts(self) -> Iterator[str]:
        """Each function."""
        for (slots, rank, upwards, bits, total), name in self.items():
            ahead = ">" if upwards else "<"
            arguments = ", ".join(f"input signed [{total - 1}:0] c{k}" for k in slots)
            best = "largest" if upwards else "smallest"
            lines = [f"  {comment(f'the slot {rank} places behind the {best}, the first of equals')}",
                     f"  function automatic [{bits - 1}:0] {name}({arguments});", "    begin",
                     f"    {name} = {slots[0]};"]  # fmt: skip
            for k in slots:
                before = [f"(c{j} {ahead}{'=' if j < k else ''} c{k})" for j in slots if j != k]
                lines.append(f"    if ({' + '.join(before) or 0} == {rank}) {name} = {k};")
            yield "\n".join([*lines, "    end", "  endfunction"])
