"""What inference without a clock costs: the gradient's error in random order, with late and with lost messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import exact
from pccompile.algorithms.units import KINDS, learned, unit
from pccompile.analysis.asynchronous import Conditions, Run, Woken
from pccompile.analysis.spectrum import Spectrum
from pccompile.diagnostics import CompileError
from pccompile.ir import Program
from pccompile.ir.liveness import handed
from pccompile.pipeline import Options, schedule
from pccompile.report.figures import bars
from pccompile.report.regime import apart, equilibrium, gradients, plain, stepped
from pccompile.report.tables import Page, Report, Table, count, number
from pccompile.runtime.displaced_batch import DisplacedBatch, Ready

LONGER = 10
"""So many times the steps are taken for the last column."""
CONDITIONS = (
    Conditions("a clock", together=True),
    Conditions("random order"),
    Conditions("delays of up to 3 rounds", delay=3),
    Conditions("90 % of messages lost", loss=0.9),
    Conditions("own rates, from 1/4 to 1", rates=(0.25, 1.0)),
)


@dataclass(frozen=True)
class Outcome:
    """One run: how far the gradient is from its end after `steps` rounds and after LONGER times as many, relative."""

    conditions: str
    arrived: int
    lost: int
    after: float
    longer: float


@dataclass(frozen=True)
class AsynchronousReport(Report):
    """An algorithm run vertex by vertex. end: what its gradients are compared with."""

    algorithm: str
    end: str
    steps: int
    rate: float
    outcomes: tuple[Outcome, ...]

    @property
    def page(self) -> Page:
        """A row for each run."""
        rows = tuple(
            (o.conditions, f"{o.arrived:,}", f"{o.lost:,}", number(o.after, 3), number(o.longer, 3))
            for o in self.outcomes
        )
        title = (
            f"{self.algorithm} vertex by vertex, rate {number(self.rate, 3)}: distance of gradients from {self.end}, "
            "relative"
        )
        headings = ("with", ">messages", ">lost", f">after {count(self.steps, 'round')}", f">after {LONGER} times that")
        return Page((title, Table(headings, rows)))

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture of both distances of each run; `path` is where to write it."""
        rows = {o.conditions: (o.after, o.longer) for o in self.outcomes}
        labels = (f"after {count(self.steps, 'round')}", f"after {LONGER} times that")
        return bars(f"{self.algorithm} vertex by vertex", rows, path, labels, f"distance from {self.end}", "log")


class CompiledUnits:
    """The vertices of a batch, each an emitted program of its own."""

    def __init__(self, batch: DisplacedBatch, program: Program, algorithm: str) -> None:
        self.batch, self.algorithm, self.pc = batch, algorithm, batch.compiled.pc
        self.hidden: tuple[str, ...] = batch.latent
        self.outputs: tuple[str, ...] = self.pc.clamped
        self.programs = {v.name: unit(self.pc, v.name, algorithm) for v in self.pc.vertices}
        self.ready: dict[str, Ready] = {k: batch.prepared(p) for k, p in self.programs.items()}
        self.tables = {k: handed(p) for k, p in self.programs.items()}
        latent = set(self.hidden)
        moving = algorithm != "fixed-prediction"
        self.views: dict[str, list[str]] = {
            v.name: [p for p in v.parents if p in latent and moving] for v in self.pc.vertices
        }
        self.told = {v.name: [p for p in v.messages if p in latent] for v in self.pc.vertices}
        self.numbers = {
            k: float(plain(program.arguments[k])) for k in ("penalty", "dual_rate") if k in program.arguments
        }
        outputs = next(iter(self.ready.values())).outputs
        places = self.pc.graph.outputs
        self.shown = {o.vertex: outputs[places.index(o.value)] for o in self.pc.outputs}

    def start(self) -> dict[str, Tensor]:
        """The forward pass, or errors of 0 where predictions stay."""
        moving = self.algorithm != "fixed-prediction"
        return {k: t.clone() if moving else torch.zeros_like(t) for k, t in self.batch.start.items()}

    def wake(
        self, name: str, own: Tensor | None, view: Mapping[str, Tensor], multiplier: Tensor | None, last: bool = False
    ) -> Woken:
        """What a vertex finds, by its program."""
        arguments, ready = self.programs[name].arguments, self.ready[name]
        known: dict[str, Any] = {"own": {name: own}, "view": view, "shown": self.shown, **self.numbers}
        known |= {"dual": {name: 0.0 if multiplier is None else multiplier}} | ({"dual_rate": 0.0} if last else {})
        how = {k: known[k] for k in arguments}
        with self.batch.plainly():
            results = ready.scope["infer"](self.batch.tables[0], ready.context, self.batch.targets, **how)
        found = dict(zip(self.tables[name], results, strict=True))
        slots = {k: found[k].get(name) for k in ("sent", "held", "multiplier") if k in found}
        messages = {p: found["told"][p] for p in self.told[name]}
        return Woken(slots["sent"], slots.get("held"), slots.get("multiplier"), messages)

    def gradients(self, run: Run) -> dict[str, Tensor]:
        """The gradients where a run stands."""
        moving = self.algorithm != "fixed-prediction"
        sent = run.look()
        offset = {v: run.own[v] - self.batch.start[v] if moving else 0.0 * run.own[v] for v in self.hidden}
        return gradients(self.batch, self.batch.ready(learned), True, offset=offset, message=sent)


def asynchronous_report(
    options: Options, batch: DisplacedBatch, spectrum: Spectrum, conditions: Sequence[Conditions] = CONDITIONS
) -> AsynchronousReport:
    """A batch under each of `conditions`. Raises CompileError for an algorithm that is not run vertex by vertex."""
    own = stepped(options)
    if own.algorithm not in KINDS or own.algorithm != options.algorithm:
        what = f"{options.algorithm} cannot be run vertex by vertex"
        raise CompileError(what, hint=f"algorithms that can: {', '.join(KINDS)}")
    program = schedule(batch.compiled.pc, own)
    if isinstance(program.arguments["rate"], Mapping) or own.settings.get("stepper", "euler") != "euler":
        raise CompileError("vertices one by one take a single rate and the stepper euler", hint="leave the table out")
    steps, rate = int(plain(program.arguments["steps"])), float(plain(program.arguments["rate"]))
    backprop = gradients(batch, batch.prepared(exact.schedule(batch.compiled.pc, exact.Settings())), False)
    end = equilibrium(own, batch, spectrum, backprop)[0] if own.algorithm == "strict" else backprop
    units, outcomes = CompiledUnits(batch, program, own.algorithm), list[Outcome]()
    for one in conditions:
        run, away = Run(units, rate, one), list[float]()
        for rounds in (steps, (LONGER - 1) * steps):
            run.rounds(rounds)
            away.append(apart(units.gradients(run), end))
        outcomes.append(Outcome(one.name, run.arrived, run.lost, away[0], away[1]))
    what = "the equilibrium's" if own.algorithm == "strict" else "backpropagation's"
    return AsynchronousReport(options.algorithm, what, steps, rate, tuple(outcomes))
