"""Inference that diverges is noticed: gradients that are no numbers, the vertex where they began, and the step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.ir import Repeat, steps_of
from pccompile.runtime.loaded_program import Runtime

HINT = "take a smaller rate; pc.infer(...) shows the energies step by step"
UNLIKE = "this batch is unlike the one that was measured: pc.analyse(...) measures it, and a number is taken as it is"


def notice(
    runtime: Runtime,
    gradients: Mapping[str, Tensor | None],
    params: Any,
    context: Any,
    clamped: Sequence[Tensor],
    finite: Tensor | None = None,
) -> None:
    """Look at the gradients of a program that iterates: raise CompileError, or warn once, where one is not finite.

    finite: whether they are, where that is known.
    Where a warning will do, those on a GPU are looked at one call late, so that nothing waits for them.
    """
    action = runtime.options.on_divergence
    if action == "ignore" or runtime.warned:
        return
    finite = all_finite(list(gradients.values())) if finite is None else finite
    if finite is None or not _down(runtime, finite):
        return
    what = diagnosis(runtime, params, context, clamped)
    hint = hint_for(runtime)
    if action == "raise":
        raise CompileError(what, hint=hint)
    runtime.warned = True
    warnings.warn(f"{what}; {hint}", RuntimeWarning, stacklevel=2)


def hint_for(runtime: Runtime) -> str:
    """What to do about inference that diverges; where its rate was chosen, by what measurement."""
    chosen = next((c for c in runtime.options.choices if c.name == "rate"), None)
    return f"{chosen}; {UNLIKE}" if chosen else HINT


def _down(runtime: Runtime, finite: Tensor) -> bool:
    """Whether a flag is down: this one, or on a GPU that of the last call, if it has arrived by now."""
    if finite.device.type != "cuda" or runtime.options.on_divergence == "raise":
        return not finite
    last, runtime.flag = runtime.flag, arrived(finite)
    return last is not None and last[1].query() and not last[0]


def arrived(flag: Tensor) -> tuple[Tensor, Any]:
    """A flag of a GPU on its way to the host, and the event after which it is there."""
    host = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return host, arrival


def all_finite(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Whether all numbers are finite, as a tensor where they are; None where there are none."""
    strided = [t for t in tensors if t is not None and t.numel() and t.layout is torch.strided]
    if not strided:
        return None
    if all(t.device.type == "cpu" and not t.is_complex() for t in strided):
        sums = [t.sum() for t in strided]  # many times as fast as the largest number, but may overflow
        if all(math.isfinite(s.item()) for s in sums):
            return torch.tensor(True)
    return _finite(torch._foreach_norm(strided, float("inf")))


def _finite(norms: Sequence[Tensor]) -> Tensor:
    return torch.stack([n.float() for n in norms]).isfinite().all()


def diagnosis(runtime: Runtime, params: Any, context: Any, clamped: Sequence[Tensor]) -> str:
    """Where and when inference leaves the numbers: the first step that does, and its first vertex from the outputs."""
    assert runtime.compiled is not None
    program = runtime.compiled.program
    steps = cast(int, program.arguments["steps"])

    def strangers(count: int) -> list[str]:
        result = runtime.function("infer", plain=True)(params, context, clamped, steps=count)
        errors = result[0] if runtime.source.moving else result
        present = [(v, e) for v in reversed(program.pc.names) if (e := errors[v]) is not None]
        return [v for v, e in present if not bool(e.isfinite().all())]

    earlier = {s.times for s in steps_of(program.infer) if isinstance(s, Repeat)} - {"steps"}
    if (first := strangers(0)) and earlier:
        return (
            f"{program.algorithm} inference diverges within {', '.join(earlier)}: the error of {first[0]} is not finite"
        )
    if first:
        return f"the error of {first[0]} is not finite before the first step: the model or its loss gives no number"
    low, high = 0, min(1, steps)
    while not strangers(high):  # most runs that diverge do so early
        if high == steps:
            return f"{program.algorithm} inference gives gradients that are not finite, though all errors are"
        low, high = high, min(2 * high, steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if strangers(middle) else (middle, high)
    chosen = program.arguments["rate"]
    rate = f"rate {chosen:g}" if isinstance(chosen, int | float) else "these rates"
    where = f"the error of {strangers(high)[0]} is not finite from step {high} of {steps} on"
    return f"{program.algorithm} inference diverges at {rate}: {where}"
