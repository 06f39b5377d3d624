"""Errors that come to more than inference can have made of the loss: a sign in normal calls that a rate is too large.

F = Σ ½‖ε‖² + L starts at the loss L₀ and falls where a rate keeps its bound. So Σ ½‖ε‖² ≤ L₀ wherever the loss is
nowhere negative, and its norms are all that a look takes. An alarm is no proof: the bound is measured before a word is
said, and where it holds, the next look comes after twice as many calls.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import ALGORITHMS, Choice
from pccompile.algorithms.common import energetic
from pccompile.analysis.spectrum import Spectrum
from pccompile.backends.torch import SWEEP
from pccompile.diagnostics import CompileError
from pccompile.frontends.process import capturing
from pccompile.ir import Program, Repeat, flat, steps_of
from pccompile.ir.equations import names, parse
from pccompile.pipeline import Options
from pccompile.runtime.displaced_batch import DisplacedBatch
from pccompile.runtime.divergence import arrived
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.model_state import Tables

Call = tuple[Tables, dict[str, Tensor]]
"""The model's tensors and those of a call."""
LOOK = 128
"""A look takes as long as 2 % of so many sweeps over a network, where operations on its tensors cost nothing."""
HINT = 'take a smaller rate, or rate="auto"'


def gradients_of(
    runtime: Runtime, params: Any, context: Any, targets: Sequence[Tensor], loss: Tensor | None, call: Call | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """The gradients of a batch, what lasts between calls, and whether all gradients are finite, where that is known.

    Where the errors are too large for the loss, they are those at a rate that is chosen anew.
    loss: that of the forward pass. Where the rate is a number it stays, and a warning says once what its bound is.
    """
    if loss is None or call is None or not watched(runtime):
        learned, finite = runtime.swept(params, context, targets)
        return *parted(learned), finite
    alarm = runtime.alarm
    alarm.calls += 1
    if alarm.calls < alarm.quiet or (alarm.calls - 1) % alarm.every:
        return *parted(runtime.function(SWEEP)(params, context, targets)), None
    found, within = _swept(runtime, params, context, targets, loss, {})
    if not _down(runtime, within):
        return *found, None
    alarm.quiet = 2 * alarm.calls
    if alarm.revise is None:
        _tell(runtime, call, targets)
        return *found, None
    numbers = alarm.revise(*call, targets)
    return *(found if numbers is None else _swept(runtime, params, context, targets, loss, numbers)[0]), None


def watched(runtime: Runtime) -> bool:
    """Whether an algorithm says how large errors can be, for half the squared error and the messages that it sends."""
    alarm = runtime.alarm
    if alarm.on is None:
        alarm.on = _can_be_watched(runtime)
        if alarm.on and runtime.compiled is not None:
            program = runtime.compiled.program
            read = {n for d in flat(program.learn) for n in names(parse(d.equation))}
            alarm.reads = frozenset(read & set(program.arguments))
            alarm.every = math.ceil(LOOK / sweeps_of(program))
    return alarm.on


def sweeps_of(program: Program) -> int:
    """The sweeps over the network that inference and learning take: two for each turn, and two."""
    turns = 0
    for step in steps_of(program.infer):
        times = program.arguments.get(step.times) if isinstance(step, Repeat) else None
        turns += times if isinstance(times, int) else 0
    return 2 * turns + 2


def _can_be_watched(runtime: Runtime) -> bool:
    if runtime.compiled is None or not runtime.iterates:
        return False
    options, pc = runtime.options, runtime.compiled.pc
    if options.jit:  # inference and learning are one function then, which returns no errors
        return False
    if options.on_divergence == "ignore" and runtime.alarm.revise is None:
        return False
    if ALGORITHMS[options.algorithm].most_energy is None or not options.transposes:
        return False
    if not pc.latent or energetic(pc) or pc.roles:
        return False
    return isinstance(runtime.compiled.program.arguments.get("rate"), int | float)


def _swept(
    runtime: Runtime, params: Any, context: Any, targets: Sequence[Tensor], loss: Tensor, numbers: Mapping[str, float]
) -> tuple[tuple[dict[str, Tensor], dict[str, Tensor]], Tensor]:
    """What learning returns, and whether the hidden errors that they are made of are as small as they must be."""
    assert runtime.compiled is not None
    program = runtime.compiled.program
    result = runtime.function("infer")(params, context, targets, **numbers)
    hidden = [result[0][v.name] for v in program.pc.latent]
    arguments = {**program.arguments, **numbers}
    most = ALGORITHMS[runtime.options.algorithm].most_energy
    assert most is not None
    norms = torch.stack([n.to(torch.promote_types(n.dtype, loss.dtype)) for n in torch._foreach_norm(hidden)])
    energy, entries = 0.5 * norms.square().sum(), sum(e.numel() for e in hidden)
    within = (energy <= most(arguments, loss, entries)) | (loss < 0)
    if runtime.alarm.revise is None:
        within |= ~norms.isfinite().all()  # what `divergence` tells
    read = {k: arguments[k] for k in runtime.alarm.reads}
    return parted(runtime.function("learn")(params, context, *result, **read)), within


def _down(runtime: Runtime, within: Tensor) -> bool:
    """Whether a flag is down: this one, or on a GPU that of the last call, so that nothing waits for it."""
    if within.device.type != "cuda":
        return not within
    last, runtime.alarm.flag = runtime.alarm.flag, arrived(within)
    return last is not None and last[1].query() and not last[0]


def bound_now(options: Options, arguments: Mapping[str, Any], spectrum: Spectrum) -> Choice | None:
    """The rate that a batch allows where all other settings stay as they are; None where it allows any."""
    algorithm = ALGORITHMS[options.algorithm]
    if algorithm.automatic is None:
        return None
    own = {f.name for f in fields(algorithm.settings)}
    in_use = {k: v for k, v in arguments.items() if k in own}
    settings = algorithm.choose({**options.settings, **in_use, "rate": "auto"})
    return next((c for c in algorithm.automatic(settings, spectrum) if c.name == "rate"), None)


def _tell(runtime: Runtime, call: Call, targets: Sequence[Tensor]) -> None:
    """Warn once where a rate that was given is above what this batch allows."""
    assert runtime.compiled is not None
    if runtime.warned:
        return
    program, (tables, inputs) = runtime.compiled.program, call
    with capturing(), torch.no_grad():
        batch = DisplacedBatch(runtime.compiled, tables, inputs, targets, runtime.alarm.scopes)
        try:
            now = bound_now(runtime.options, program.arguments, Spectrum(batch))
        except CompileError:  # a stepper that no bound is known for
            return
    rate = program.arguments["rate"]
    assert isinstance(rate, int | float)
    if now is None or not rate > now.limit:
        return
    runtime.warned = True
    what = f"{program.algorithm} inference leaves its bound: errors come to more than the loss that they began with"
    measured = f"rate {rate:.4g} was given, and {now.value:.4g} would be {now.reason}"
    warnings.warn(f"{what}; {measured}; {HINT}", RuntimeWarning, stacklevel=2)
