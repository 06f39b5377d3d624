"""SystemVerilog of a netlist, plasticity included: bit for bit what the fixed-point simulator computes.

    iverilog -g2012 -o sim pc_net.sv pc_net_tb.sv && vvp sim

The parallel form has hardware for every synapse and does a tick a clock. The sequential one walks through memories with
one multiplier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pccompile.backends.netlist.export import write
from pccompile.backends.netlist.export.datapath import Datapath
from pccompile.backends.netlist.export.verilog_bench import bench, vectors
from pccompile.backends.netlist.export.verilog_parallel import Parallel
from pccompile.backends.netlist.export.verilog_sequential import Sequential
from pccompile.backends.netlist.format import Spec
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.simulate.formats import Formats, check, halvings
from pccompile.diagnostics import CompileError, Problem

Form = Literal["auto", "parallel", "sequential"]

SYNAPSES = 2_000
"""Up to so many synapses `auto` spends hardware on each."""

MOST_SYNAPSES = 20_000
"""The most synapses of the parallel form."""

WORDS = 500_000
"""The most words that a testbench compares unless it is told for how many ticks."""


class Verilog:
    """Writes `pc_<name>.sv`, the testbench `pc_<name>_tb.sv`, and what they read."""

    name = "verilog"

    def supports(self, net: Netlist, form: Form = "auto") -> tuple[str, ...]:
        """Why `net` cannot be written in a form; empty if it can."""
        if form not in ("auto", "parallel", "sequential"):
            return (f"there is no {form} form",)
        if reasons := (*_numbers(net), *_shapes(net.spec, net.tensors)):
            return reasons
        path = Datapath(net)
        return tuple(_unparallel(path) if _form(path, form) == "parallel" else _unsequential(path))

    def emit(self, net: Netlist, folder: Path, **options: Any) -> tuple[Path, ...]:
        """Write module, testbench, stimulus and what the simulator expects. Options are those of `to_verilog`."""
        return write(folder, {name: text.encode() for name, text in to_verilog(net, **options).items()})


def to_verilog(
    net: Netlist,
    *,
    form: Form = "auto",
    probes: Sequence[str] | None = None,
    presentation: Mapping[str, np.ndarray] | None = None,
    ticks: int | None = None,
) -> dict[str, str]:
    """The texts of all files by name, the module first.

    probes: the populations whose states can be read besides the outputs', all errors by default. presentation: what the
    testbench presents, from `Netlist.presentation`, one after the other, each through all phases; by default random
    numbers between −1 and 1. ticks: of the testbench, 100 by default, fewer for large circuits. Raises CompileError.
    """
    if reasons := EXPORTER.supports(net, form):
        raise CompileError([Problem(f"no Verilog of {net.spec.name}: {reason}") for reason in reasons])
    path = Datapath(net)
    if probes is None:
        probes = [n for n, p in net.spec.populations.items() if p.role == "error"]
    if unknown := [n for n in (*probes, *(presentation or {})) if n not in net.spec.populations]:
        raise CompileError(f"no population is called {unknown[0]}")
    circuit = (Parallel if _form(path, form) == "parallel" else Sequential)(path, net.spec.name, probes)
    words = sum(len(path.integers[p]) for p in path.rules)
    words += sum(net.spec.populations[n].size for n in circuit.observed())
    ticks = max(1, min(100, WORDS // max(words, 1))) if ticks is None else ticks
    found = vectors(net, path, circuit.observed(), ticks, presentation)
    files = {".sv": circuit.text(), "_tb.sv": bench(circuit, ticks)}
    files |= {f".{end}": text for end, text in {**circuit.images(), **found.files()}.items()}
    return {circuit.module + end: text for end, text in files.items()}


def _form(path: Datapath, form: Form) -> Form:
    """The form that is meant."""
    if form != "auto":
        return form
    return "parallel" if path.synaptic() <= SYNAPSES else "sequential"


def _numbers(net: Netlist) -> Iterator[str]:
    """What fixed point cannot do."""
    wrong = []
    for name, p in net.spec.populations.items():
        if p.unit == "integrator":
            try:
                halvings(name, p)
            except CompileError as e:
                wrong += [problem.what for problem in e.problems]
    yield from wrong
    if not wrong:
        try:
            check(net.spec, net.tensors, formats := Formats.of(net.spec, net.tensors), 1)
        except CompileError as e:
            yield from (problem.what for problem in e.problems)
        else:
            for name, (_, fraction) in formats.states.items():
                if net.spec.populations[name].function == "step(x)" and fraction < 0:
                    yield f"population {name} has {fraction} fractional bits, and so no 1 to step to"


def _shapes(spec: Spec, tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What has no hardware in either form."""
    into = spec.into()
    for name, p in spec.populations.items():
        if not p.size:
            yield f"population {name} has no units"
        if p.unit == "select":
            candidates = (tensors[str(into[name][0].index)] >= 0).sum(1)
            rank = 0 if p.ranks is None else tensors[p.ranks].reshape(-1)
            if (candidates <= rank).any():
                yield f"population {name} has a unit with fewer candidates than it chooses from"
    if not (spec.inputs or spec.clamps or spec.draws) or not spec.outputs:
        yield "the circuit has no inputs or no outputs"


def _unparallel(path: Datapath) -> Iterator[str]:
    if path.synaptic() > MOST_SYNAPSES:
        yield f"{path.synaptic()} synapses are too many for the parallel form; take the sequential one"


def _unsequential(path: Datapath) -> Iterator[str]:
    for param, terms in path.rules.items():
        if len({t.phase for t in terms}) > 1:
            yield f"parameter {param} changes in several phases, which the sequential form does not do"


EXPORTER = Verilog()
