"""The regime of inference on one batch: how far it goes, and whose gradients it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS, exact
from pccompile.analysis.spectrum import Spectrum
from pccompile.diagnostics import CompileError, printable
from pccompile.ir import PCGraph, Program
from pccompile.pipeline import Options, schedule
from pccompile.report.figures import figure, save
from pccompile.report.tables import Page, Report, Table, count, number
from pccompile.runtime.automatic_rates import chosen_for
from pccompile.runtime.displaced_batch import SEED, DisplacedBatch, Ready
from pccompile.runtime.loaded_program import parted

Gradients = Mapping[str, Tensor]
MEAN = {"incremental": "strict", "langevin": "strict"}
"""Algorithms that move parameters, or draw noise, and the one whose values theirs follow without that."""
SETTLED, MOST_STEPS = 1e-4, 4096
"""An equilibrium is reached where twice the steps change gradients by so little, relatively; and the most steps."""
NAMED = 12
"""So many layers are named below a picture."""
CLOSE, FAR = 0.99, 0.1
"""A cosine from which gradients are called those of backpropagation; a distance from equilibrium that is called far."""


@dataclass(frozen=True)
class Comparison:
    """The gradient of one parameter or layer against those of backpropagation and of the converged equilibrium.

    Cosines and ratios of norms, the algorithm's over the other's; nan where one of them is 0.
    """

    name: str
    cosine_to_backprop: float
    ratio_to_backprop: float
    cosine_to_equilibrium: float
    ratio_to_equilibrium: float


@dataclass(frozen=True)
class RegimeReport(Report):
    """How far inference goes: q = rate · steps · λ_max, far below 1 where it has hardly begun.

    distance: of all gradients from the equilibrium's, relative. settled_after: the steps at which that was taken, at an
    automatic rate; `settled` says whether twice as many would have changed nothing. notes: lines for the reader.
    layers: the parameters of each module together, from the input on.
    """

    algorithm: str
    steps: int
    rate: float
    q: float
    parameters: tuple[Comparison, ...]
    distance: float
    settled_after: int
    settled: bool
    notes: tuple[str, ...]
    layers: tuple[Comparison, ...]

    @property
    def page(self) -> Page:
        """q, what to look out for, and a row for each parameter."""
        rows = tuple(
            (p.name, *(number(x, 4) for x in (p.cosine_to_backprop, p.ratio_to_backprop)),
             *(number(x, 4) for x in (p.cosine_to_equilibrium, p.ratio_to_equilibrium)))
            for p in self.parameters
        )  # fmt: skip
        headings = ("parameter", ">cosine to backprop", ">ratio", ">cosine to equilibrium", ">ratio")
        return Page(
            (
                f"regime: q = rate · steps · λmax = {number(self.q, 3)}, {self.algorithm} with "
                f"{count(self.steps, 'step')} of size {number(self.rate, 3)}",
                f"equilibrium: {'' if self.settled else 'not '}settled after {count(self.settled_after, 'step')}, "
                f"gradients are {number(self.distance, 3)} away from it",
                *self.notes,
                Table(headings, rows),
            )
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """Cosines and ratios of norms by layer, from the input on, as a matplotlib Figure; written to `path` if given.

        Raises CompileError without matplotlib.
        """
        picture = figure(7, 5)
        panels = picture.subplots(2, sharex=True)
        places = range(len(self.layers))
        for axes, what in zip(panels, ("cosine", "ratio"), strict=True):
            for other, label in (("backprop", "to backpropagation"), ("equilibrium", "to the equilibrium")):
                numbers = [getattr(layer, f"{what}_to_{other}") for layer in self.layers]
                axes.plot(places, numbers, marker=".", linewidth=1, label=label)
            axes.axhline(1, color="0.8", linewidth=1, zorder=0)
        panels[0].set(ylabel="cosine of the gradient", title=f"{self.algorithm}: q = {number(self.q, 3)}")
        panels[1].set(ylabel="ratio of norms", xlabel="layer, from the input on")
        names = [printable(layer.name, 24).replace("$", r"\$") for layer in self.layers]
        panels[1].set_xticks(places[:: len(places) // NAMED + 1], names[:: len(places) // NAMED + 1], rotation=30)
        panels[0].legend(fontsize="x-small")
        return save(picture, path)


def has_regime(algorithm: str) -> bool:
    """Whether an algorithm's inference takes steps that it could take more or fewer of."""
    return {"steps", "rate"} <= _settings(algorithm)


def _settings(algorithm: str) -> set[str]:
    return {f.name for f in fields(ALGORITHMS[algorithm].settings)}


def regime_report(options: Options, batch: DisplacedBatch, spectrum: Spectrum) -> RegimeReport:
    """The gradients of a batch by this algorithm, by backpropagation and at equilibrium. Raises CompileError."""
    if not has_regime(options.algorithm):
        what = f"{options.algorithm} takes no inference steps of its own choice: there is no regime to tell"
        raise CompileError(what, hint='kinds=("spectrum",)')
    own = stepped(options)
    program = schedule(batch.compiled.pc, own)
    steps, rate = int(plain(program.arguments["steps"])), float(plain(program.arguments["rate"]))
    notes = list[str]()
    if own.algorithm != options.algorithm:
        notes.append(f"{options.algorithm} is compared as {own.algorithm}, whose values it follows on average")
        steps += int(plain(schedule(batch.compiled.pc, options).arguments.get("burn_in", 0)))
    found = gradients(batch, batch.prepared(program), bool(program.state), steps=steps, rate=rate)
    backprop = gradients(batch, batch.prepared(exact.schedule(batch.compiled.pc, exact.Settings())), False)
    end, after, settled = equilibrium(own, batch, spectrum, backprop)
    parameters = tuple(
        Comparison(name, *_compared(g, backprop[name]), *_compared(g, end[name])) for name, g in found.items()
    )
    layers = by_layer(batch.compiled.pc, (found, backprop, end))
    away = apart(found, end)
    q = rate * steps * (1.0 if spectrum.empty else _largest(own, program, spectrum))
    notes += _warnings(own.algorithm, steps, q, parameters, away, batch)
    return RegimeReport(options.algorithm, steps, rate, q, parameters, away, after, settled, tuple(notes), layers)


def by_layer(pc: PCGraph, gradients: tuple[Gradients, Gradients, Gradients]) -> tuple[Comparison, ...]:
    """The first gradients against the others, those of all parameters of a module as one vector, in the graph's order.

    A parameter of several vertices stands where the first of them does.
    """
    learned = dict.fromkeys(pc.graph.origin[p] for v in pc.vertices for p in v.messages if p in pc.graph.params)
    layers: dict[str, list[str]] = {}
    for name in (n for n in (*learned, *(gradients[0].keys() - learned)) if n in gradients[0]):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    rows = []
    for layer, names in layers.items():
        own, *others = (torch.cat([_flat(g[n]) for n in names]) for g in gradients)
        rows.append(Comparison(layer, *_compared(own, others[0]), *_compared(own, others[1])))
    return tuple(rows)


def stepped(options: Options) -> Options:
    """How the algorithm is compared: step by step, without noise, at parameters that stand."""
    if "lowering" in _settings(options.algorithm):
        return replace(options, settings={**options.settings, "lowering": "relax"})
    if options.algorithm in MEAN:
        shared = {k: v for k, v in options.settings.items() if k in ("steps", "rate")}
        defaults = ALGORITHMS[options.algorithm].choose({})
        settings = {"steps": defaults.steps, "rate": defaults.rate, **shared}
        return replace(options, algorithm=MEAN[options.algorithm], settings=settings)
    return options


def _largest(options: Options, program: Program, spectrum: Spectrum) -> float:
    """λ_max of the operator that inference iterates."""
    if not program.state:
        return 1.0
    match options.algorithm:
        case "error-optimization":
            return 1 + max(spectrum.curvature().high.value, 0.0)
        case "alm":
            penalty = float(plain(program.arguments["penalty"]))
            return (penalty + spectrum.curvature().norm) * spectrum.stiffness().value
    return spectrum.hessian(float(plain(program.arguments.get("nudge", 1.0)))).value


def gradients(batch: DisplacedBatch, ready: Ready, moving: bool, **arguments: Any) -> dict[str, Tensor]:
    """What a program over the vertices of a batch gives its parameters."""
    with torch.random.fork_rng(), batch.plainly():
        torch.manual_seed(SEED)
        given = batch.targets if moving else ready.scope["clamp"](ready.outputs, batch.targets)[1]
        found, _ = parted(ready.scope["infer_and_learn"](batch.tables[0], ready.context, given, **arguments))
    return {k: g for k, g in found.items() if k in batch.tables[0] and g is not None}


def equilibrium(
    options: Options, batch: DisplacedBatch, spectrum: Spectrum, backprop: dict[str, Tensor]
) -> tuple[dict[str, Tensor], int, bool]:
    """The gradients where inference has settled, the steps until then, and whether it has."""
    if not schedule(batch.compiled.pc, options).state:
        return backprop, batch.longest, True
    program = schedule(batch.compiled.pc, rated_by_measurement(options, batch, spectrum))
    ready, moving = batch.prepared(program), bool(program.state)
    return until_settled(lambda steps: gradients(batch, ready, moving, steps=steps), batch.longest)


def until_settled(
    measure: Callable[[int], dict[str, Tensor]], longest: int, change: float = SETTLED
) -> tuple[dict[str, Tensor], int, bool]:
    """What inference ends in, the steps until twice as many change it by `change` at most, and whether they do."""
    steps = max(16, 2 * longest)
    last = measure(steps)
    while steps < MOST_STEPS:
        steps *= 2
        now = measure(steps)
        if apart(last, now) <= change:
            return now, steps, True
        last = now
    return last, steps, False


def rated_by_measurement(options: Options, batch: DisplacedBatch, spectrum: Spectrum) -> Options:
    """The same algorithm at rates that a batch allows, where it can measure them."""
    automatic: dict[str, Any] = {k: "auto" for k in ("rate", "penalty") if k in _settings(options.algorithm)}
    if ALGORITHMS[options.algorithm].automatic is None:
        return options
    free = replace(options, settings={**options.settings, **automatic}, choices=())
    return replace(free, choices=chosen_for(free, batch, spectrum))


def _warnings(
    algorithm: str, steps: int, q: float, parameters: tuple[Comparison, ...], distance: float, batch: DisplacedBatch
) -> Iterator[str]:
    """What makes gradients other than they seem."""
    local = algorithm != "error-optimization"
    if local and steps < batch.longest:
        yield (
            f"warning: news of the loss takes {batch.longest} steps to the farthest vertex, and {steps} are taken: "
            "what is farther away does not learn"
        )
    differs = not ALGORITHMS[algorithm].equals.startswith("backprop")
    cosines = [p.cosine_to_backprop for p in parameters if math.isfinite(p.cosine_to_backprop)]
    if differs and q < 1 and distance > FAR and min(cosines, default=0.0) >= CLOSE:
        yield (
            f"warning: q = {number(q)}: inference has hardly begun, and gradients point where backpropagation's do: "
            "take more steps or a larger rate for those of the equilibrium"
        )


def _compared(found: Tensor, other: Tensor) -> tuple[float, float]:
    """Cosine and ratio of norms."""
    a, b = _flat(found), _flat(other)
    sizes = float(a.norm()), float(b.norm())
    if not all(sizes):
        return math.nan, math.nan if not sizes[1] else 0.0
    return float(torch.dot(a, b)) / (sizes[0] * sizes[1]), sizes[0] / sizes[1]


def _flat(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return (torch.view_as_real(dense) if dense.is_complex() else dense).reshape(-1).double()


def apart(found: Gradients, other: Gradients) -> float:
    """‖found − other‖ / ‖other‖ over all parameters."""
    between = sum(float((g - other[k]).abs().double().square().sum()) for k, g in found.items())
    size = sum(float(g.abs().double().square().sum()) for g in other.values())
    return math.sqrt(between / size) if size else 0.0 if not between else math.inf


def plain(value: Any) -> float:
    """A number, or the largest of a table of numbers."""
    return max(value.values(), default=0.0) if isinstance(value, Mapping) else value
