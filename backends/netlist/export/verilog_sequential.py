"""SystemVerilog of a netlist with one multiplier that walks through memories: many clocks a tick."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np

from pccompile.backends.netlist.export.datapath import Datapath
from pccompile.backends.netlist.export.verilog_schedule import DRAIN, KINDS, OPERANDS, Affine, Pass, Schedule, Step
from pccompile.backends.netlist.export.verilog_text import Identifiers, comment, header, word, wrapped

PASS_FIELDS = ("kind", "target", "accumulator", "rows", "columns", "first_step", "list_base", "gated", "phase", "total",
               "total_x", "total_y", "fraction", "rescale", "guard", "halvings", "leak", "table_base", "table_log",
               "table_shift")  # fmt: skip
STEP_FIELDS = ("slots", "listed", "one", "operand", "x_base", "x_row", "x_column", "x_slot", "y_base", "y_row",
               "y_column", "y_slot", "factor", "shift", "negative", "port", "last_step")  # fmt: skip
SIGNED = ("factor", "shift", "table_shift", "fraction", "rescale")
"""Fields that may be negative; all others are unsigned."""

Record = tuple[str, dict[str, int]]
"""What a pass or a step is for, and its fields."""


class Sequential:
    """The module `name` of a datapath. probes: the populations that a testbench watches, besides the outputs."""

    def __init__(self, path: Datapath, name: str, probes: Sequence[str]) -> None:
        self.path, self.spec, self.probes = path, path.spec, tuple(probes)
        self.schedule = Schedule(path)
        self.module = Identifiers()("pc", name)
        self.width = path.width()
        self.lists = self.schedule.lists()
        self.passes, self.steps = self._records()

    def observed(self) -> tuple[str, ...]:
        """The populations whose states a testbench reads."""
        return tuple(dict.fromkeys([*(p.population for p in self.spec.outputs.values()), *self.probes]))

    def _records(self) -> tuple[list[Record], list[Record]]:
        """The fields of every pass and of every step, with what they are for."""
        passes: list[Record] = []
        steps: list[Record] = []
        at = 0
        for p, entries in zip(self.schedule.passes, self.lists, strict=True):
            passes.append((p.name, self._pass(p, len(steps), at)))
            at += len(entries)
            steps += [(s.name, self._step(s, i == len(p.steps) - 1)) for i, s in enumerate(p.steps)]
        return passes, steps

    @staticmethod
    def _pass(p: Pass, first: int, at: int) -> dict[str, int]:
        x, y = (*p.totals, p.total, p.total)[:2]
        gated = int(p.phase is not None)
        values = (KINDS.index(p.kind), p.target, p.accumulator, p.rows, p.columns, first, at, gated, p.phase or 0,
                  p.total, x, y, p.fraction, p.rescale, p.guard, p.halvings, p.leak, *p.table)  # fmt: skip
        return dict(zip(PASS_FIELDS, values, strict=True))

    @staticmethod
    def _step(s: Step, last: bool) -> dict[str, int]:
        nothing: Affine = (0, 0, 0, 0)
        values = (s.slots, int(s.listed), int(s.one), OPERANDS.index(s.operand), *(s.x or nothing), *(s.y or nothing),
                  s.factor, s.shift, int(s.negative), s.port, int(last))  # fmt: skip
        return dict(zip(STEP_FIELDS, values, strict=True))

    def sizes(self) -> dict[str, int]:
        """The widths and depths of everything, by the names that the text of the machine has for them."""
        s, formats = self.schedule, self.path.formats
        states = [b for b, _ in formats.states.values()]
        entries = np.concatenate([np.zeros((1, 4), dtype=np.int64), *self.lists])
        depths = [s.state_words, s.accumulator_words, s.winner_words, s.parameter_words, s.table_words, len(entries)]
        slots = max([st["slots"] for _, st in self.steps])
        return {
            "WIDTH": self.width,
            "ADDRESS": max(2, max(*depths, slots).bit_length()),
            "SLOT": max(1, int(slots).bit_length()),
            "STATE": max(states),
            "STATES": s.state_words,
            "PARAMETER": max([formats.params[n][0] for n in s.parameters], default=2),
            "PARAMETERS": max(1, s.parameter_words),
            "ACCUMULATOR": max([formats.states[n][0] + self.path.guard(n) for n in s.accumulators], default=2),
            "ACCUMULATORS": max(1, s.accumulator_words),
            "WINNERS": max(1, s.winner_words),
            "TABLES": max(1, s.table_words),
            "LISTS": len(entries) - 1 or 1,
            "PASSES": len(self.passes),
            "STEPS": len(self.steps),
            "PHASES": max(1, len(self.path.phases())),
            "CLEARED": max(s.state_words, s.accumulator_words),
            "DRAIN": DRAIN,
        }

    def text(self) -> str:
        """The whole file."""
        sizes, schedule = self.sizes(), self.schedule
        host = max(sizes["STATE"], sizes["PARAMETER"])
        exact = all(-1 <= s["factor"] <= 1 for _, s in self.steps)
        simple = "factor3 == 1 ? sum3 : factor3 == -1 ? -sum3 : $signed(1'b0)"
        loads = {
            "parameters": schedule.parameter_words,
            "tables": schedule.table_words,
            "lists": sum(map(len, self.lists)),
        }
        parts = {
            "MODULE": self.module,
            "LOCALPARAMS": "\n".join(f"  localparam {k} = {v};" for k, v in sizes.items()),
            "LAST_PHASE": str(sizes["PHASES"] - 1),
            "LAST_ADDRESS": str(sizes["ADDRESS"] - 1),
            "LAST_HOST": str(host - 1),
            "PASS_FIELDS": "\n".join(self._fields(PASS_FIELDS, self.passes)),
            "STEP_FIELDS": "\n".join(self._fields(STEP_FIELDS, self.steps)),
            "PASS_NOTHING": wrapped("", [f"{f} = 0;" for f in PASS_FIELDS], " ", ""),
            "STEP_NOTHING": wrapped("", [f"{f} = 0;" for f in STEP_FIELDS], " ", ""),
            "PASS_ROM": self._rom(PASS_FIELDS, self.passes),
            "STEP_ROM": self._rom(STEP_FIELDS, self.steps),
            "KINDS": ", ".join(f"{k} = {i}" for i, k in enumerate(KINDS)),
            "OPERANDS": ", ".join(f"{k} = {i}" for i, k in enumerate(OPERANDS)),
            "LOADS": "\n".join(
                f'    $readmemh("{self.module}.{k}.hex", {k});' if n else f"    {k}[0] = 0;" for k, n in loads.items()
            ),
            "GAINED": simple if exact else "factor3 == 1 ? sum3 : sum3 * factor3",
        }
        title = f"{self.spec.name}: a predictive-coding circuit, one multiplier, many clocks a tick"
        machine = resources.files("pccompile.backends.netlist.export").joinpath("machine.sv").read_text("utf-8")
        machine = re.sub(r"\$([A-Z_]{4,})", lambda m: parts[m[1]], machine)
        return header(title, self._header()) + "\n\n" + machine

    def _bits(self, fields: Sequence[str], records: Sequence[Record]) -> dict[str, int]:
        found = {}
        for f in fields:
            values = [r[f] for _, r in records]
            found[f] = max(1, max(max(v, -v - 1).bit_length() for v in values)) + (f in SIGNED)
        return found

    def _fields(self, fields: Sequence[str], records: Sequence[Record]) -> Iterator[str]:
        for f, bits in self._bits(fields, records).items():
            yield f"  reg {'signed ' if f in SIGNED else ''}[{bits - 1}:0] {f};"

    @staticmethod
    def _rom(fields: Sequence[str], records: Sequence[Record]) -> str:
        """A case for each record, that sets what is not 0."""
        spelled = {"kind": KINDS, "operand": OPERANDS}
        lines = []
        for i, (name, record) in enumerate(records):
            lines.append(f"      {i}: begin  {comment(name)}")
            said = {f: spelled[f][v] if f in spelled else str(v) for f, v in record.items() if v or f in spelled}
            lines.append(wrapped("        ", [f"{f} = {v};" for f, v in said.items()], " ", ""))
            lines.append("      end")
        return "\n".join([*lines, "      default: ;"])

    def images(self) -> dict[str, str]:
        """The contents of the memories, for $readmemh, by the ends of their files' names."""
        sizes, path = self.sizes(), self.path
        address, slot = sizes["ADDRESS"], sizes["SLOT"]
        entries = [
            (int(e) << address | int(x)) << address + slot | int(y) << slot | int(k)
            for rows in self.lists for e, x, y, k in rows.tolist()
        ]  # fmt: skip
        parameters = [v for name in self.schedule.parameters for v in path.integers[name]]
        found = {
            "parameters": (parameters, sizes["PARAMETER"]),
            "tables": ([v for t in self.schedule.tables for v in t], sizes["STATE"]),
            "lists": (entries, 1 + 2 * address + slot),
        }
        return {
            f"{what}.hex": "".join(f"{word(v, bits)}\n" for v in words)
            for what, (words, bits) in found.items()
            if words
        }

    def resources(self) -> dict[str, int]:
        """What the circuit takes."""
        s = self.sizes()
        return {
            "state memory bits": s["STATE"] * s["STATES"],
            "accumulator memory bits": s["ACCUMULATOR"] * self.schedule.accumulator_words,
            "parameter memory bits": s["PARAMETER"] * self.schedule.parameter_words,
            "table memory bits": s["STATE"] * self.schedule.table_words,
            "address list bits": (1 + 2 * s["ADDRESS"] + s["SLOT"]) * sum(map(len, self.lists)),
        }

    def _header(self) -> Iterator[str]:
        formats, schedule = self.path.formats, self.schedule
        yield "A clock of start begins a tick, busy is 1 until it is over. rst is synchronous: it clears states, one a"
        yield "clock, and leaves the parameters. While busy is 0 the host reads and writes states (host_select 0) and"
        yield "parameters (host_select 1); what it reads is there after the next clock. $readmemh fills the memories."
        for i, phase in enumerate(self.path.phases()):
            yield f"Bit {i} of phases, with start: the parameters of phase {phase} change in this tick."
        yield ""
        yield f"{schedule.clocks()} clocks a tick"
        for i, phase in enumerate(self.path.phases()):
            yield f"{schedule.clocks([i])} clocks a tick of phase {phase}"
        yield f"{self.path.synaptic()} synapses; 1 multiplier for them, 1 for products, 1 for gains, 6 for addresses"
        yield from (f"{count} {what}" for what, count in self.resources().items())
        yield ""
        for name, p in self.spec.populations.items():
            total, fraction = formats.states[name]
            place = schedule.states[name, 0]
            yield f"{name}: {p.size} x {p.unit}, {total} bits, {fraction} fractional, from address {place}"
        for param, values in self.path.integers.items():
            total, fraction = formats.params[param]
            place = schedule.parameters[param]
            yield f"{param}: {len(values)} entries, {total} bits, {fraction} fractional, from address {place}"
