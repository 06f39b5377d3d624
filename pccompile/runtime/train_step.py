"""One training step, of algorithms that move the parameters inside inference too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

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
from pccompile.runtime.rollback import guarded
from pccompile.runtime.settle import learned


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
