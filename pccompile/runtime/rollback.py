"""Inference in which parameters move as well: undone, and taken again at half of the rate, where it leaves its bound.

Each of its steps is an optimizer's step too, and curvature moves with the weights, so that no measurement before a call
knows the bound within it. The joint descent falls from the loss on: errors that come to more than that tell that the
rate is too large. Where it was chosen, parameters and the optimizer's state are kept until inference has ended.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms.common import energetic
from pccompile.diagnostics import CompileError
from pccompile.runtime.loaded_program import Runtime

HALVINGS = 20
Infer = Callable[..., Any]
"""Inference at other numbers than the program's own; what it returns begins with the errors."""


def guarded(
    runtime: Runtime, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, loss: Tensor, infer: Infer
) -> Any:
    """What inference returns, at the program's rate or the largest half, quarter … of it that keeps errors in bounds.

    loss: that of the forward pass. A rate at which they are is kept for the calls to come. Where half of it brings them
    no lower, the rate is not what is too large: it stays, and twice as many calls go by until the next look.
    Raises CompileError where no rate gives numbers; parameters and optimizer are then as they were.
    """
    alarm, first = runtime.alarm, next((c.value for c in runtime.options.choices if c.name == "rate"), None)
    alarm.calls += 1
    if alarm.keep is None or first is None or alarm.calls < alarm.quiet:
        return infer()
    before = _Before(params.values(), optimizer)
    rate, settled = first, infer()
    energy, most = _energy(runtime, settled[0]), _most(runtime, loss)
    for _ in range(HALVINGS):
        if energy <= most:
            if rate < first:
                alarm.keep(rate)
            return settled
        before.restore()
        rate, last = rate / 2, energy
        settled = infer(rate=rate)
        energy = _energy(runtime, settled[0])
        if math.isfinite(energy) and energy >= last:
            alarm.quiet = 2 * alarm.calls
            return settled
    before.restore()
    what = f"{runtime.options.algorithm}: no rate keeps errors in bounds while parameters move, down to {rate:.1g}"
    raise CompileError(what, hint="take a smaller learning rate, or give rate and steps as numbers")


class _Before:
    """Parameters and an optimizer's state as they are now."""

    def __init__(self, params: Iterable[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.values = [(p, p.detach().clone()) for p in params if p.requires_grad]
        self.optimizer, self.state = optimizer, copy.deepcopy(optimizer.state_dict())

    def restore(self) -> None:
        """Put them back."""
        for p, value in self.values:
            p.copy_(value)
        self.optimizer.load_state_dict(copy.deepcopy(self.state))


def _energy(runtime: Runtime, errors: Mapping[str, Tensor]) -> float:
    """Σ ½‖ε‖² over the hidden vertices; infinite where an error is no number."""
    assert runtime.compiled is not None
    present = [e for e in errors.values() if e is not None and e.numel()]
    if not present:
        return 0.0
    if not bool(torch.stack([e.isfinite().all() for e in present]).all()):
        return math.inf
    return sum(0.5 * float(errors[v.name].abs().double().square().sum()) for v in runtime.compiled.pc.latent)


def _most(runtime: Runtime, loss: Tensor) -> float:
    """What it comes to at most: the loss, where every energy is half the squared error; else any number."""
    assert runtime.compiled is not None
    bounded = not energetic(runtime.compiled.pc) and bool(loss >= 0)
    return float(loss) if bounded else torch.finfo(torch.float64).max
