"""Settings that are "auto": chosen on the first batch with a target, tried on it, and followed through training.

Weights learn, and the bound of a rate moves with them. It is measured again now and then on the batch that it was
chosen for, by a few Lanczos steps from what was found before, as often as costs a small part of inference. Where the
rate has come too near to it, everything that is automatic is chosen anew.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS, Algorithm, Choice
from pccompile.analysis.spectrum import Spectrum
from pccompile.backends.torch import emit
from pccompile.diagnostics import CompileError
from pccompile.frontends.process import capturing
from pccompile.pipeline import Options, schedule
from pccompile.runtime.displaced_batch import SEED, DisplacedBatch, Ready
from pccompile.runtime.energy_alarm import bound_now, sweeps_of
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import targets_of
from pccompile.runtime.model_state import Tables

RISE = 1e-6
"""The part of itself by which rounding lets free energy rise."""
HALVINGS = 20
TRIAL = 1000
"""A trial takes so many of the chosen steps at most."""
TOLL = 0.04
"""The part of inference that following its bound may cost."""
WEIGHT = 10
"""A sweep of a measurement takes as long as so many of inference, on networks so small that operations cost nothing."""
FOLLOWING = 3
"""Lanczos steps of a measurement that starts from what was found before."""


def measures(options: Options) -> bool:
    """Whether some settings are to be chosen by measuring a batch."""
    return ALGORITHMS[options.algorithm].measures(options.settings)


@dataclass
class Held:
    """What has been chosen for one loss, and the batch on which its bound is followed.

    calls: of programs with this loss; due: the call at which the bound is measured next. told: whether a user knows
    that no other choice would hold.
    """

    choices: tuple[Choice, ...] = ()
    runtime: Runtime | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Sequence[Tensor] = ()
    starts: Mapping[object, Tensor] = field(default_factory=dict)
    calls: int = 1
    due: int = 2
    told: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "runtime": None, "inputs": {}, "targets": (), "starts": {}}

    def measured_on(self, runtime: Runtime, batch: DisplacedBatch, spectrum: Spectrum) -> None:
        """Follow the bound on this batch from now on."""
        copied = {k: t.detach().clone() for k, t in batch.inputs.items()}
        self.runtime, self.inputs, self.targets = runtime, copied, [t.detach().clone() for t in batch.targets]
        self.starts = spectrum.directions


class Rates:
    """What has been chosen for each loss of a model."""

    def __init__(self) -> None:
        self.held: dict[Any, Held] = {}

    def program(
        self, runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor], loss: Any, target: Any, record: bool
    ) -> Runtime:
        """The program with the rates that were chosen for this loss, or that are chosen now if there is a target.

        Raises CompileError where none can be chosen for the first batch.
        """
        held = self.held.get(loss)
        if target is None:
            return rated(runtime, held.choices, record) if held else runtime
        if held is None:
            with capturing():
                batch = _batch(runtime, tables, inputs, targets_of(target))
                spectrum = Spectrum(batch)
                held = self.held[loss] = Held(chosen_for(runtime.options, batch, spectrum))
                held.measured_on(runtime, batch, spectrum)
        elif not record:
            held.calls += 1
            if held.calls >= held.due:
                with capturing(), torch.no_grad():
                    _follow(held, runtime, tables, inputs, targets_of(target))
        program = rated(runtime, held.choices, record)
        program.alarm.revise = partial(_revised, held, runtime)
        program.alarm.keep = partial(_lowered, held, runtime)
        return program


def _batch(runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> DisplacedBatch:
    assert runtime.compiled is not None
    return DisplacedBatch(runtime.compiled, tables, inputs, targets, runtime.alarm.scopes)


def _follow(
    held: Held, runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]
) -> None:
    """Measure the bound again, and choose anew where the rate is too near to it. Raises CompileError."""
    program, before = rated(runtime, held.choices, record=False), held.choices
    assert program.compiled is not None
    arguments = program.compiled.program.arguments
    if held.runtime is runtime:
        inputs, targets = held.inputs, held.targets
    batch = _batch(runtime, tables, inputs, targets)
    known = held.runtime is runtime and bool(held.starts)
    spectrum = Spectrum(batch, starts=held.starts, most=FOLLOWING) if known else Spectrum(batch)
    rate, now = arguments.get("rate"), bound_now(runtime.options, arguments, spectrum)
    held.measured_on(runtime, batch, spectrum)
    if isinstance(rate, int | float) and now is not None and not rate <= now.limit:
        whose = "" if any(c.name == "rate" for c in held.choices) else " was given and"
        if whose:  # what is told of it, once, is measured to the end
            now = bound_now(runtime.options, arguments, Spectrum(batch)) or now
        reason = f"rate {rate:.4g}{whose} is above {now.limit:.4g}; now it would be {now.value:.4g}, {now.reason}"
        spectrum = _anew(held, runtime, batch, reason)
        if held.choices == before:
            held.due = 2 * held.calls
            return
    interval = math.ceil(WEIGHT * (spectrum.sweeps + 2) / (TOLL * sweeps_of(program.compiled.program)))
    held.due = held.calls + min(interval, held.calls)


def _revised(
    held: Held, runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]
) -> dict[str, float] | None:
    """Other numbers for a batch whose errors are too large for its loss; None where none are better."""
    before = held.choices
    with capturing(), torch.no_grad():
        batch = _batch(runtime, tables, inputs, targets)
        _anew(held, runtime, batch, "errors come to more than the loss that they began with", sure=False)
    if held.choices == before:
        return None
    program = rated(runtime, held.choices, record=False).compiled
    assert program is not None
    now = program.program.arguments  # one that was not chosen may follow from one that was
    return {k: v for k, v in now.items() if isinstance(v, int | float)}


def _lowered(held: Held, runtime: Runtime, rate: float) -> None:
    """Take a smaller rate from now on, and as many steps as before: each of them moves the weights."""
    before = next(c for c in held.choices if c.name == "rate")
    reason = f"parameters move while inference goes on, and errors came to more than the loss; {before.reason}"
    held.choices = tuple(c._replace(value=rate, reason=reason) if c is before else c for c in held.choices)
    if runtime.options.on_divergence != "ignore":
        name = runtime.options.algorithm
        why = "errors come to more than the loss that they began with, since parameters move as well"
        what = f"{name} inference leaves its bound at call {held.calls}: {why}"
        warnings.warn(f"{what}; chosen anew: rate {before.value:.4g} → {rate:.4g}", RuntimeWarning, stacklevel=2)


def _anew(held: Held, runtime: Runtime, batch: DisplacedBatch, why: str, sure: bool = True) -> Spectrum:
    """Choose for this batch, and keep that if the rate is smaller, or if the one before is too large beside all else.

    Either is told where the bound is surely left. Steps stay where each of them is one of the optimizer's too: more of
    them would carry the weights farther, and the bound with them. Raises CompileError.
    """
    options, spectrum, name = runtime.options, Spectrum(batch), runtime.options.algorithm
    before = {c.name: c.value for c in held.choices}
    try:
        choices = chosen_for(options, batch, spectrum)
    except CompileError as e:
        if options.on_divergence == "raise":
            raise
        return _told(held, options, f"{name} inference leaves its bound: {why}; {e.problems[0].what}", spectrum)
    held.measured_on(runtime, batch, spectrum)
    now = {c.name: c for c in choices}
    if "rate" in now and (now["rate"].value < before["rate"] or _leaves(options, before, spectrum)):
        still = {c.name: c for c in held.choices if c.paced and runtime.source.updates}
        now = {k: still.get(k) or _paced(c, before, now["rate"].value) for k, c in now.items()}
        held.choices = tuple(now.values())
        changes = ", ".join(f"{k} {before[k]:.4g} → {c.value:.4g}" for k, c in now.items())
        what = f"{name} inference leaves its bound at call {held.calls}: {why}; chosen anew: {changes}"
        if options.on_divergence != "ignore":
            warnings.warn(f"{what} ({now['rate'].reason})", RuntimeWarning, stacklevel=2)
        return spectrum
    if not sure:
        return spectrum
    hint = now["rate"].reason if "rate" in now else "numbers that were given stay"
    return _told(held, options, f"{name} inference leaves its bound: {why}; {hint}", spectrum)


def _leaves(options: Options, chosen: Mapping[str, float], spectrum: Spectrum) -> bool:
    """Whether a rate is above what a batch allows beside the other numbers that were chosen with it."""
    now = bound_now(options, chosen, spectrum)
    return now is not None and not chosen["rate"] <= now.limit


def _paced(choice: Choice, before: Mapping[str, float], rate: float) -> Choice:
    """Steps at a new rate: as many as go as far along the flow as those before."""
    if not choice.paced:
        return choice
    steps = math.ceil(before["steps"] * before["rate"] / rate)
    reason = f"as far as {before['steps']:g} steps of size {before['rate']:.4g} went"
    return choice._replace(value=min(steps, TRIAL), reason=reason)


def _told(held: Held, options: Options, what: str, spectrum: Spectrum) -> Spectrum:
    """Warn of what no other choice helps against, once."""
    if not held.told and options.on_divergence != "ignore":
        held.told = True
        warnings.warn(what, RuntimeWarning, stacklevel=2)
    return spectrum


def _holds(algorithm: Algorithm, first: float, last: float) -> bool:
    """Whether inference ends where it should: lower than it began if it descends, finite in any case."""
    return last <= first + RISE * abs(first) if algorithm.descends else math.isfinite(last)


def chosen_for(options: Options, batch: DisplacedBatch, spectrum: Spectrum) -> tuple[Choice, ...]:
    """What is right for a batch. A rate at which its inference nevertheless leaves the bound is halved until it holds.

    Raises CompileError where the batch gives no finite number, or no rate is small enough.
    """
    algorithm = ALGORITHMS[options.algorithm]
    assert algorithm.automatic is not None
    choices = algorithm.automatic(algorithm.choose(options.settings), spectrum)
    if not all(math.isfinite(c.value) for c in choices):
        what = f"{algorithm.name}: no rate can be measured, since forces on this batch are not finite"
        raise CompileError(what, hint="look at the batch and the weights, or give rate and steps as numbers")
    return _tried(options, spectrum, batch, choices) if batch.latent else choices


def rated(runtime: Runtime, choices: tuple[Choice, ...], record: bool) -> Runtime:
    """The same program with what was chosen as the defaults of its functions."""
    if choices not in runtime.rated:
        assert runtime.compiled is not None
        options = replace(runtime.options, choices=choices)
        program = schedule(runtime.compiled.pc, options)
        source = emit(program, runtime.compiled.loss, record)
        compiled = replace(runtime.compiled, program=program, source=source)
        runtime.rated[choices] = replace(runtime, source=source, compiled=compiled, options=options, _scope={})
    return runtime.rated[choices]


def _tried(
    options: Options, spectrum: Spectrum, batch: DisplacedBatch, choices: tuple[Choice, ...]
) -> tuple[Choice, ...]:
    """The choices, with a rate at which inference of this batch ends where it should."""
    rate = next((c for c in choices if c.name == "rate"), None)
    if rate is None:
        return choices
    algorithm, first = ALGORITHMS[options.algorithm], batch.free_energy(batch.start)
    ready = batch.prepared(schedule(batch.compiled.pc, replace(options, choices=choices)))
    last = whole = _energy_after(batch, ready, choices)
    for halved in range(1, HALVINGS):
        if _holds(algorithm, first, last):
            return choices
        smaller = rate.value / 2**halved
        settings = replace(algorithm.choose(options.settings), rate=smaller)
        risen = f"at which free energy goes from {first:.4g} to {whole:.4g}"
        reason = f"1/{2**halved} of {rate.value:.4g}, {risen}; {rate.value:.4g} is {rate.reason}"
        assert algorithm.automatic is not None
        choices = (Choice("rate", smaller, reason), *algorithm.automatic(settings, spectrum))
        last = _energy_after(batch, ready, choices)
    what = f"{algorithm.name}: no rate lets free energy fall on this batch, down to {smaller:.1g}"
    raise CompileError(what, hint="pc.analyse(args, target=...) shows the spectrum; or give a rate")


def _energy_after(batch: DisplacedBatch, ready: Ready, choices: tuple[Choice, ...]) -> float:
    """The free energy at which inference of a batch ends."""
    chosen = {c.name: min(c.value, TRIAL) if c.name == "steps" else c.value for c in choices}
    with torch.random.fork_rng(), batch.plainly():
        torch.manual_seed(SEED)
        _, values, *_ = ready.scope["infer"](batch.tables[0], ready.context, batch.targets, **chosen)
    return batch.free_energy(values)
