"""How fast inference approaches what it ends in: predicted and measured, by vertex and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS, exact
from pccompile.algorithms.common import energetic
from pccompile.algorithms.law import path_lengths
from pccompile.analysis.convergence import left, left_by_multipliers
from pccompile.analysis.spectrum import Spectrum
from pccompile.diagnostics import CompileError, printable
from pccompile.ir import Program
from pccompile.ir.law import weight
from pccompile.ir.liveness import handed
from pccompile.pipeline import Options, schedule
from pccompile.report.figures import figure, save
from pccompile.report.regime import has_regime, plain, rated_by_measurement, stepped, until_settled
from pccompile.report.tables import Page, Report, Table, count, number
from pccompile.runtime.displaced_batch import SEED, DisplacedBatch, Ready

LINES = 12
"""So many vertices get a line of their own in a plot."""
STILL = 1e-7
"""What an equilibrium changes by when the steps are doubled, relatively."""
MEASURED = {"alm": "credit", "error-optimization": "error"}
"""The slot that approaches its end; of others the one that moves."""
WHOLE = "all"


@dataclass(frozen=True)
class ConvergenceReport(Report):
    """‖x(t) − x(∞)‖ / ‖x(0) − x(∞)‖ for what inference moves, x, after t steps.

    quantity: what x is, and what it approaches. measured, predicted: for each vertex, and "all" for the whole vector, a
    number for each of `steps`. Predictions are the law of fixed prediction where a vertex's paths have one length, its
    bound where they have several, and otherwise `left` to the power of t, `left` being what a step leaves of the
    slowest mode near the forward pass; that is of the whole vector, and it bounds it where a network is linear.
    """

    algorithm: str
    quantity: str
    steps: tuple[int, ...]
    measured: Mapping[str, tuple[float, ...]]
    predicted: Mapping[str, tuple[float, ...]]
    left: float | None
    notes: tuple[str, ...]

    @property
    def page(self) -> Page:
        """A row for each vertex, its prediction below it where there is one."""
        rows = list[tuple[str, ...]]()
        for name, found in self.measured.items():
            rows.append((name, *(number(x) for x in found)))
            if name in self.predicted:
                rows.append(("  predicted", *(number(x) for x in self.predicted[name])))
        mode = "" if self.left is None else f"; a step leaves {self.left:.6g} of the slowest mode"
        title = f"convergence of {self.algorithm}: {self.quantity}, relative to that at step 0{mode}"
        return Page((title, *self.notes, Table(("vertex", *(f">{t}" for t in self.steps)), tuple(rows))))

    def plot(self, path: str | Path | None = None) -> Any:
        """Both over the steps, as a matplotlib Figure; written to `path` where one is given, by whose end.

        Raises CompileError without matplotlib.
        """
        picture = figure(7, 4.5)
        axes = picture.subplots()
        slowest = sorted(self.measured, key=lambda name: (name != WHOLE, -self.measured[name][-1]))[:LINES]
        for name in slowest:
            how: dict[str, Any] = {"color": "black", "linewidth": 2} if name == WHOLE else {"linewidth": 1}
            label = printable(name, 40).replace("$", r"\$")
            (line,) = axes.plot(self.steps, self.measured[name], marker=".", label=label, **how)
            if name in self.predicted:
                axes.plot(self.steps, self.predicted[name], linestyle="--", color=line.get_color(), linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="inference steps", ylabel="distance from its end, relative")
        axes.set_title(f"{self.algorithm}: measured, and predicted (dashed)")
        axes.legend(fontsize="x-small", ncols=2)
        return save(picture, path)


def convergence_report(options: Options, batch: DisplacedBatch, spectrum: Spectrum) -> ConvergenceReport:
    """Inference of a batch measured after 1, 2, 4 … steps. Raises CompileError for algorithms without steps."""
    if not has_regime(options.algorithm):
        what = f"{options.algorithm} takes no inference steps of its own choice: there is no convergence to tell"
        raise CompileError(what, hint='kinds=("spectrum",)')
    own, notes = stepped(options), list[str]()
    if own.algorithm != options.algorithm:
        notes.append(f"{options.algorithm} is measured as {own.algorithm}, whose values it follows on average")
    program = schedule(batch.compiled.pc, own)
    total = int(plain(program.arguments["steps"]))
    steps = (*(2**k for k in range(max(total, 1).bit_length()) if 2**k < total), max(total, 1))
    run = _Run(batch, program, MEASURED.get(own.algorithm, program.state or "error"))
    end, quantity = _end(own, batch, spectrum, run, notes)
    first = run(0)
    names = [v for v in batch.latent if float(_norm(first[v] - end[v]))]
    found = [run(t) for t in steps]
    measured = {v: tuple(_norm(x[v] - end[v]) / _norm(first[v] - end[v]) for x in found) for v in names}
    start = sum(_norm(first[v] - end[v]) ** 2 for v in names) ** 0.5
    if names:
        whole = tuple(sum(_norm(x[v] - end[v]) ** 2 for v in names) ** 0.5 / start for x in found)
        measured = {WHOLE: whole, **measured}
    factor, predicted = _predicted(own, program, batch, spectrum, steps)
    if factor is None and not predicted:
        notes.append("nothing is predicted: that is known for half the squared error, and for linear steppers")
    kept = {k: p for k, p in predicted.items() if k in measured}
    return ConvergenceReport(options.algorithm, quantity, steps, measured, kept, factor, tuple(notes))


class _Run:
    """What a program has in one slot of its hidden vertices after so many steps."""

    def __init__(self, batch: DisplacedBatch, program: Program, slot: str) -> None:
        self.batch, self.program, self.slot = batch, program, slot
        self.ready: Ready = batch.prepared(program)
        self.position = handed(program).index(slot)

    def __call__(self, steps: int) -> dict[str, Tensor]:
        batch, scope = self.batch, self.ready.scope
        with torch.random.fork_rng(), batch.plainly():
            torch.manual_seed(SEED)
            given = batch.targets if self.program.state else scope["clamp"](self.ready.outputs, batch.targets)[1]
            how = {"steps": steps} if "steps" in self.program.arguments else {}
            found = scope["infer"](batch.tables[0], self.ready.context, given, **how)
        table = found[self.position] if isinstance(found, tuple) else found
        return {v: table[v].detach() for v in batch.latent}


def _end(
    own: Options, batch: DisplacedBatch, spectrum: Spectrum, run: _Run, notes: list[str]
) -> tuple[dict[str, Tensor], str]:
    """What inference approaches: backpropagation's errors where those are its end, else its equilibrium."""
    if not run.program.state or own.algorithm == "alm":
        errors = _Run(batch, exact.schedule(batch.compiled.pc, exact.Settings()), "error")(0)
        return errors, f"distance of {run.slot}s from backpropagation's"
    plainer = {k: v for k, v in own.settings.items() if k not in ("stepper", "mass", "tolerance")}
    surer = rated_by_measurement(replace(own, settings=plainer), batch, spectrum)
    calm = _Run(batch, schedule(batch.compiled.pc, surer), run.slot)
    end, after, settled = until_settled(calm, batch.longest, STILL)
    if not settled:
        notes.append(f"warning: the equilibrium has not settled after {count(after, 'step')}: distances are to that")
    return end, f"distance of {run.slot}s from their equilibrium"


def _predicted(
    own: Options, program: Program, batch: DisplacedBatch, spectrum: Spectrum, steps: tuple[int, ...]
) -> tuple[float | None, dict[str, tuple[float, ...]]]:
    """What a step leaves of the slowest mode, and what is left by vertex after so many steps."""
    rate = program.arguments["rate"]
    if not program.state:
        assert isinstance(rate, float | int)
        lengths = path_lengths(batch.compiled.pc)
        law = {
            v: tuple(max(abs(1 - weight(t, rate, k)) for k in lengths[v]) for t in steps)
            for v in batch.latent
            if lengths[v]
        }
        return None, law
    if spectrum.empty or energetic(batch.compiled.pc):
        return None, {}
    factor = _left(own, program, spectrum)
    return factor, {} if factor is None else {WHOLE: tuple(factor**t for t in steps)}


def _left(own: Options, program: Program, spectrum: Spectrum) -> float | None:
    """What a step leaves of the mode that it leaves most of, near the forward pass."""
    rate = program.arguments["rate"]
    rates = tuple(rate.values()) if isinstance(rate, Mapping) else (rate,)
    settings = ALGORITHMS[own.algorithm].choose(own.settings)
    match own.algorithm:
        case "alm":
            penalty, dual = (float(plain(program.arguments[k])) for k in ("penalty", "dual_rate"))
            ends, stiff, soft = spectrum.curvature().both, spectrum.stiffness().value, spectrum.softness().value
            return max(left_by_multipliers(rates[0], penalty, dual, e.value, g) for e in ends for g in (soft, stiff))
        case "error-optimization":
            ends = spectrum.curvature().both
            return max(abs(1 - rates[0] * (1 + e.value)) for e in ends)
        case "strict" | "nudged":
            nudge = float(plain(program.arguments.get("nudge", 1.0)))
            low, high = spectrum.slowest(nudge).value, spectrum.hessian(nudge).value
            how, mass = getattr(settings, "stepper", "euler"), getattr(settings, "mass", 0.0)
            found = [left(how, r * x, mass) for r, x in ((min(rates), low), (max(rates), high))]
            return max(x for x in found if x is not None) if None not in found else None
    return None


def _norm(x: Tensor) -> float:
    return float(x.abs().double().norm())
