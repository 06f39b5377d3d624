"""Settings that are "auto": chosen on the first batch with a target, tried on it, and kept."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS, Algorithm, Choice
from pccompile.analysis.spectrum import Spectrum
from pccompile.backends.torch import emit
from pccompile.diagnostics import CompileError
from pccompile.driver import Options, capturing, schedule
from pccompile.runtime.displaced_batch import SEED, DisplacedBatch, Ready
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import targets_of
from pccompile.runtime.model_state import Tables

RISE = 1e-6
"""The part of itself by which rounding lets free energy rise."""
HALVINGS = 20
TRIAL = 1000
"""A trial takes so many of the chosen steps at most."""


def measures(options: Options) -> bool:
    """Whether some settings are to be chosen by measuring a batch."""
    return ALGORITHMS[options.algorithm].measures(options.settings)


class Rates:
    """What has been chosen for each loss of a model, and how often programs were asked for since."""

    def __init__(self) -> None:
        self.choices: dict[Any, tuple[Choice, ...]] = {}
        self.calls: Counter[Any] = Counter()

    def program(
        self, runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor], loss: Any, target: Any, record: bool
    ) -> Runtime:
        """The program with the rates that were chosen for this loss, or that are chosen now if there is a target.

        At the 2nd, 4th, 8th … call inference is tried again, and where it leaves the bound, what is then measured is
        told in the way that `on_divergence` says. Raises CompileError.
        """
        if target is None:
            return rated(runtime, self.choices[loss], record) if loss in self.choices else runtime
        self.calls[loss] += 1
        if loss in self.choices and not _due(self.calls[loss]):
            return rated(runtime, self.choices[loss], record)
        assert runtime.compiled is not None
        with capturing():
            batch = DisplacedBatch(runtime.compiled, tables, inputs, targets_of(target))
            if loss not in self.choices:
                self.choices[loss] = chosen_for(runtime.options, batch, Spectrum(batch))
            else:
                _watch(replace(runtime.options, choices=self.choices[loss]), batch)
            return rated(runtime, self.choices[loss], record)


def _due(calls: int) -> bool:
    """Whether a number is a power of two."""
    return calls & (calls - 1) == 0


def _watch(options: Options, batch: DisplacedBatch) -> None:
    """Tell where inference leaves the bound on a batch, and what would be chosen now. Raises CompileError."""
    rate = next((c for c in options.choices if c.name == "rate"), None)
    if options.on_divergence == "ignore" or rate is None or not batch.latent:
        return
    algorithm, first = ALGORITHMS[options.algorithm], batch.free_energy(batch.start)
    last = _energy_after(batch, batch.prepared(schedule(batch.compiled.pc, options)), options.choices)
    if _holds(algorithm, first, last):
        return
    assert algorithm.automatic is not None
    now = algorithm.automatic(algorithm.choose(options.settings), Spectrum(batch))
    measured = next(c for c in now if c.name == "rate")
    what = (
        f"{algorithm.name} inference leaves its bound: free energy goes from {first:.4g} to {last:.4g} at rate "
        f"{rate.value:.4g}, {rate.reason}"
    )
    hint = f"on this batch that would be {measured.value:.4g}, {measured.reason}: compile anew, or give that rate"
    if options.on_divergence == "raise":
        raise CompileError(what, hint=hint)
    warnings.warn(f"{what}; {hint}", RuntimeWarning, stacklevel=2)


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
