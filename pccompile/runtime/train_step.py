"""One training step, of algorithms that move the parameters inside inference too."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms.common import energetic
from pccompile.backends.torch import SWEEP
from pccompile.diagnostics import CompileError
from pccompile.passes.roles import NO_ROLES, Free
from pccompile.runtime.divergence import all_finite, hint_for
from pccompile.runtime.given_values import Given
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.losses import targets_of
from pccompile.runtime.model_state import Tables
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.pieces import ModuleInPieces
from pccompile.runtime.settle import learned

HALVINGS = 20
Infer = Callable[..., Any]
"""Inference at other numbers than the program's own; what it returns begins with the errors."""


def train_step(
    pc: CompiledModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    target: Any,
    optimizer: torch.optim.Optimizer,
    free: Free | str = (),
    clamped: Mapping[str, Tensor] | None = None,
    mask: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The loss before the step. Raises CompileError, and what the optimizer raises."""
    named, given = dict(kwargs), Given(NO_ROLES, targets=tuple(targets_of(target)))
    if free or clamped or mask:
        given = Given.of(target, pc.criterion, free, clamped, mask)
    if isinstance(pc, ModuleInPieces) and not given.roles:
        return _descended(lambda: pc.loss_by(pc.criterion, args, named, target), optimizer)
    runtime, tables, inputs = pc.program_for(args, named, target, given.roles)
    if not runtime.source.updates and not given.roles:
        return _descended(lambda: pc.loss_of(runtime, tables, inputs, given.targets), optimizer)

    step = _updating if runtime.source.updates else _settling

    def run(runtime: Runtime, inputs: dict[str, Tensor], targets: list[Tensor], tables: Tables) -> Any:
        return step(pc, runtime, tables, inputs, targets, optimizer)

    with torch.no_grad():
        return pc.step_by(run, runtime, tables, given.leaves(runtime, inputs), list(given.targets))[0]


def _descended(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    """The loss, after a step of the optimizer along its gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return loss.detach()


def _settling(
    pc: CompiledModule,
    runtime: Runtime,
    tables: Tables,
    inputs: dict[str, Tensor],
    targets: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[Tensor, ...]:
    """The loss and the outputs, after an optimizer step by the gradients at the settled values."""
    outputs, context = pc.predict(runtime, tables, {k: t.detach() for k, t in inputs.items()})
    loss, _ = runtime.clamp(outputs, targets)
    with torch.autocast(loss.device.type, enabled=False):
        gradients, lasting = parted(runtime.function(SWEEP)(tables[0], context, targets))
    pc.keep(runtime, lasting)
    optimizer.zero_grad(set_to_none=True)
    for gradient in runtime.source.gradients:
        if gradient.table == "params":
            tables[0][gradient.entry].grad = gradients[gradient.key]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return (loss, *outputs)


def _updating(
    pc: CompiledModule,
    runtime: Runtime,
    tables: Tables,
    inputs: dict[str, Tensor],
    targets: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[Tensor, ...]:
    """The loss and the outputs, after an inference that has moved the parameters with the optimizer."""
    params = tables[0]

    def update(gradients: Mapping[str, Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        for path, gradient in gradients.items():
            params[path].grad = gradient
        optimizer.step()

    outputs, context = pc.predict(runtime, tables, {k: t.detach() for k, t in inputs.items()})
    loss, _ = runtime.clamp(outputs, targets)
    with torch.autocast(loss.device.type, enabled=False):
        infer = partial(runtime.function("infer"), params, context, targets, update=update)
        settled = guarded(runtime, params, optimizer, loss, infer)
        lasting = learned(runtime, params, context, settled, {})[1] if runtime.source.lasting else {}
    pc.keep(runtime, lasting)
    errors = settled[0]
    optimizer.zero_grad(set_to_none=True)
    _notice(runtime, errors)
    return (loss, *outputs)


def _notice(runtime: Runtime, errors: Mapping[str, Tensor]) -> None:
    """Raise CompileError, or warn once, where inference has ended in what is no number."""
    action = runtime.options.on_divergence
    if action == "ignore" or runtime.warned:
        return
    finite = all_finite(list(errors.values()))
    if finite is None or bool(finite):
        return
    first = next(name for name, e in reversed(list(errors.items())) if not bool(e.isfinite().all()))
    what = f"{runtime.options.algorithm} inference diverges: the error of {first} is not finite"
    hint = hint_for(runtime)
    if action == "raise":
        raise CompileError(what, hint=hint)
    runtime.warned = True
    warnings.warn(f"{what}; {hint}", RuntimeWarning, stacklevel=3)


def guarded(
    runtime: Runtime, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, loss: Tensor, infer: Infer
) -> Any:
    """What inference returns, at the program's rate or the largest half, quarter … of it that keeps errors in bounds.

    Curvature moves with the weights, so that no measurement before a call knows the bound within it. The joint descent
    falls from the loss on: errors that come to more than that tell that the rate is too large.
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
