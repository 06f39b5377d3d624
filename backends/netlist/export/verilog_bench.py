"""Testbenches: modules that present a stimulus to a circuit, and compare each tick with what is expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pccompile.backends.netlist.export.datapath import Datapath
from pccompile.backends.netlist.export.verilog_parallel import Parallel
from pccompile.backends.netlist.export.verilog_sequential import Sequential
from pccompile.backends.netlist.export.verilog_text import word, wrapped
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.simulate.fixed import FixedSimulator

CHECK = """      for (i = 0; i < WORDS; i = i + 1) begin
        $fdisplay(file, "%h", seen[i]);
        if (seen[i] !== expected[t * WORDS + i]) begin
          errors = errors + 1;
          if (errors <= 10) $display("tick %0d, word %0d: %h, not %h", t + 1, i, seen[i], expected[t * WORDS + i]);
        end
      end"""
"""The end of a tick: what was seen is written and compared."""


def frame(name: str, sizes: Mapping[str, int], ticks: int, instance: str, body: str) -> str:
    """A testbench: its memories, its checks, around an instance of the circuit and the ticks of `body`."""
    words = sizes["observed"] + sizes["parameters"]
    return f"""// Presents {name}.stimulus.hex, writes {name}.trace.hex and compares it with {name}.expected.hex.
module tb;
  localparam TICKS = {ticks}, INPUTS = {sizes["inputs"]}, WORDS = {words};
  reg [31:0] stimulus [0:TICKS * (1 + INPUTS) - 1];
  reg [31:0] expected [0:TICKS * WORDS - 1];
  reg [31:0] seen [0:WORDS - 1];
  reg clk = 0, rst = 1;
  integer t, i, file, errors = 0;
  always #5 clk = ~clk;

{instance}

  initial begin
    $readmemh("{name}.stimulus.hex", stimulus);
    $readmemh("{name}.expected.hex", expected);
    file = $fopen("{name}.trace.hex", "w");
{body}
    $fclose(file);
    if (errors == 0) $display("PASS: %0d ticks, %0d words each", TICKS, WORDS);
    else $display("FAIL: %0d of %0d words differ", errors, TICKS * WORDS);
    $finish;
  end
endmodule
"""


def bench(circuit: Parallel | Sequential, ticks: int) -> str:
    """The testbench of a circuit."""
    sizes = {name: p.size for name, p in circuit.spec.populations.items()}
    counts = {
        "inputs": sum(sizes[n] for n in circuit.path.inputs),
        "observed": sum(sizes[n] for n in circuit.observed()),
        "parameters": sum(len(circuit.path.integers[p]) for p in circuit.path.rules),
    }
    parts = _parallel(circuit, counts) if isinstance(circuit, Parallel) else _sequential(circuit, counts)
    return frame(circuit.module, counts, ticks, *parts)


def _parallel(c: Parallel, counts: Mapping[str, int]) -> tuple[str, str]:
    """Combinational states are read before the clock that ends a tick, registers after it."""
    path, sizes = c.path, {name: p.size for name, p in c.spec.populations.items()}
    inputs, outputs = {n: c.id("in", n) for n in path.inputs}, {n: c.id("out", n) for n in c.observed()}
    phases = [c.id("phase", p) for p in path.phases()]
    signals = ["clk", "rst", "tick", *phases, *inputs.values(), *outputs.values()]
    wires = [f"  reg {c.bus(n)} {wire} = 0;" for n, wire in inputs.items()]
    wires += [f"  wire {c.bus(n)} {wire};" for n, wire in outputs.items()]
    wires.append(f"  reg {', '.join(f'{p} = 0' for p in ['tick', *phases])};")
    if counts["parameters"]:
        signals += ["param_address", "param_data"]
        wires.append(f"  reg [{c.address_bits() - 1}:0] param_address = 0;")
        wires.append(f"  wire signed [{c.parameter_bits() - 1}:0] param_data;")
    wires.append(wrapped(f"  {c.module} dut (", [f".{s}({s})" for s in signals], ", ", ");"))

    def each(name: str, statement: str) -> str:
        total = path.formats.states[name][0]
        return f"      for (i = 0; i < {sizes[name]}; i = i + 1) {statement.replace('BITS', f'{total} * i +: {total}')}"

    lines = ["    @(negedge clk);", "    @(negedge clk);", "    rst = 0;", "    tick = 1;",
             "    for (t = 0; t < TICKS; t = t + 1) begin"]  # fmt: skip
    place = 1
    for name, wire in inputs.items():
        lines.append(each(name, f"{wire}[BITS] = stimulus[t * (1 + INPUTS) + {place} + i];"))
        place += sizes[name]
    lines += [f"      {phase} = stimulus[t * (1 + INPUTS)][{i}];" for i, phase in enumerate(phases)]
    for latched in (False, True):
        lines.append("      @(negedge clk);" if latched else "      #1;")
        place = 0
        for name, wire in outputs.items():
            if (name in path.integrators) == latched:
                lines.append(each(name, f"seen[{place} + i] = $signed({wire}[BITS]);"))
            place += sizes[name]
    if counts["parameters"]:
        lines += ["      tick = 0;", f"      for (i = 0; i < {counts['parameters']}; i = i + 1) begin",
                  "        param_address = i;", "        #1;", f"        seen[{counts['observed']} + i] = param_data;",
                  "      end", "      @(negedge clk);", "      tick = 1;"]  # fmt: skip
    return "\n".join(wires), "\n".join([*lines, CHECK, "    end"])


def _sequential(c: Sequential, counts: Mapping[str, int]) -> tuple[str, str]:
    """The testbench is a host: it writes inputs, starts a tick, reads states and parameters."""
    at, widths = c.schedule.states, c.sizes()
    host = max(widths["STATE"], widths["PARAMETER"]) - 1
    instance = f"""  reg start = 0, host_select = 0, host_write = 0;
  reg [{widths["PHASES"] - 1}:0] phases = 0;
  reg [{widths["ADDRESS"] - 1}:0] host_address = 0;
  reg signed [{host}:0] host_in = 0;
  wire signed [{host}:0] host_out;
  wire busy;
  integer clocks = 0;
  always @(posedge clk) if (busy) clocks = clocks + 1;
  {c.module} dut (.clk(clk), .rst(rst), .start(start), .phases(phases), .busy(busy), .host_select(host_select),
      .host_write(host_write), .host_address(host_address), .host_in(host_in), .host_out(host_out));"""
    lines = ["    @(negedge clk);", "    rst = 0;", "    while (busy) @(negedge clk);",
             "    for (t = 0; t < TICKS; t = t + 1) begin", "      host_write = 1;",
             "      host_select = 0;"]  # fmt: skip

    def each(size: int, address: int, before: str, after: str) -> list[str]:
        body = [f"host_address = {address} + i;", before, "@(negedge clk);", after]
        return [f"      for (i = 0; i < {size}; i = i + 1) begin", *(f"        {b}" for b in body if b), "      end"]

    place = 1
    for name in c.path.inputs:
        size = c.spec.populations[name].size
        lines += each(size, at[name, 0], f"host_in = stimulus[t * (1 + INPUTS) + {place} + i];", "")
        place += size
    lines += ["      host_write = 0;", "      phases = stimulus[t * (1 + INPUTS)];", "      start = 1;",
              "      @(negedge clk);", "      start = 0;", "      clocks = 1;", "      while (busy) @(negedge clk);",
              '      $fdisplay(file, "// tick %0d: %0d clocks", t + 1, clocks);']  # fmt: skip
    place = 0
    for name in c.observed():
        size = c.spec.populations[name].size
        lines += each(size, at[name, 0], "", f"seen[{place} + i] = host_out;")
        place += size
    if counts["parameters"]:
        lines += ["      host_select = 1;", *each(counts["parameters"], 0, "", f"seen[{place} + i] = host_out;")]
    return instance, "\n".join([*lines, CHECK, "    end"])


@dataclass(frozen=True)
class Vectors:
    """Words of 32 bits, a row for each tick.

    stimulus: a bit for each phase that is on, then the states of all inputs. expected: the states of the observed
    populations and the plastic parameters at the end of the tick.
    """

    stimulus: np.ndarray
    expected: np.ndarray

    def files(self) -> dict[str, str]:
        """Both for $readmemh, by the ends of their files' names."""
        tables = {"stimulus.hex": self.stimulus, "expected.hex": self.expected}
        return {end: "".join(f"{word(v, 32)}\n" for v in rows.reshape(-1).tolist()) for end, rows in tables.items()}


def vectors(
    net: Netlist, path: Datapath, observed: Sequence[str], ticks: int, presentation: Mapping[str, np.ndarray] | None
) -> Vectors:
    """What `ticks` ticks of the fixed-point simulator present and leave.

    presentation: states of input populations, `[presentations, *shape]`, presented one after the other, each through
    all phases of the netlist, over and over; without, random numbers between −1 and 1, the same ones each time.
    """
    if presentation is None:
        generator = np.random.default_rng(0)
        presentation = {n: generator.uniform(-1, 1, (4, *path.spec.populations[n].shape)) for n in path.inputs}
    count = max((len(v) for v in presentation.values()), default=1)
    plan = [phase.name for phase in path.spec.phases for _ in range(phase.ticks)] or ["settle"]
    simulator = FixedSimulator(path.spec, net.tensors)
    stimulus, expected = [], []
    for t in range(ticks):
        shown, phase = t // len(plan) % count, plan[t % len(plan)]
        for name, value in presentation.items():
            simulator.set(name, torch.as_tensor(value[shown % len(value)]))
        on = sum(1 << i for i, name in enumerate(path.phases()) if name == phase)
        stimulus.append([on, *_whole(simulator.states[n] for n in path.inputs)])
        simulator.tick(phase)
        seen = [*(simulator.states[n] for n in observed), *(simulator.params[p] for p in path.rules)]
        expected.append(_whole(seen))
    return Vectors(np.array(stimulus, dtype=np.int64), np.array(expected, dtype=np.int64))


def _whole(tensors: Iterable[torch.Tensor]) -> list[int]:
    return [int(v) for t in tensors for v in t.reshape(-1).tolist()]
