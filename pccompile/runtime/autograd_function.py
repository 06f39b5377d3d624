"""A program as one step of autograd: prediction forwards, inference and learning backwards."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.autocast import current, without_autocast
from pccompile.runtime.derivative_guards import opaque, refuse_second_order
from pccompile.runtime.divergence import notice
from pccompile.runtime.energy_alarm import gradients_of, watched
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.model_state import Tables
from pccompile.runtime.partial_losses import partial_sweep
from pccompile.runtime.value_hooks import refuse_value_hooks

Predict = Callable[[Runtime, Tables, dict[str, Tensor]], tuple[tuple[Tensor, ...], list[Any]]]
"""The outputs of a program for these inputs, and its context."""
Keep = Callable[[Runtime, Mapping[str, Tensor]], None]
"""Takes what a program has found that lasts between calls, by its path."""

OUTSIDE = "inference needs the loss, and that of this backward() was taken of the model's outputs afterwards"
INSIDE = (
    "compile with loss= and call pc.loss(x, target=y).backward(); "
    'or compile with outside_loss="linearise", which clamps the outputs by the first derivative of such a loss'
)
STEP = "pc.train_step(args, target, optimizer) in the place of loss.backward() and optimizer.step()"


class Bridge(torch.autograd.Function):
    """Prediction forwards, inference and learning backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        predict: Predict,
        keep: Keep | None,
        runtime: Runtime,
        tables: Tables,
        inputs: dict[str, Tensor],
        targets: Any,
        *_: Tensor,
    ) -> Any:
        """The outputs; before them the loss of `targets`, where they are given."""
        detached = {k: t.detach() for k, t in inputs.items()}
        outputs, context, loss, errors = _forward(predict, runtime, tables, detached, targets)
        ctx.runtime, ctx.targets, ctx.keep, ctx.loss, ctx.call = runtime, targets, keep, None, None
        ctx.is_tensor = [isinstance(c, Tensor) for c in context]
        ctx.rest = [c for c in context if not isinstance(c, Tensor)]
        ctx.set_materialize_grads(False)
        params = tables[0]
        ctx.names = tuple(params)
        kept = [*params.values(), *(c for c in context if isinstance(c, Tensor))]
        clamped = [outputs[i] for i in runtime.source.errors]
        ctx.like = [(o.shape, o.dtype, o.device) for o in clamped]
        results = tuple(o if all(o is not p for p in outputs[:i]) else o.detach() for i, o in enumerate(outputs))
        carrying = {runtime.source.outputs[i] for i in runtime.source.errors}
        still = (o for o, name in zip(results, runtime.source.outputs, strict=True) if name not in carrying)
        ctx.mark_non_differentiable(*still)
        ctx.results = [weakref.ref(o) for o in results]
        if targets is None:
            ctx.save_for_backward(*kept, *(o.detach() for o in clamped if runtime.source.moving))
            return results
        if watched(runtime):
            ctx.loss, ctx.call = loss.detach(), (tables, detached)
        ctx.save_for_backward(*kept, *(() if runtime.source.moving else errors))
        return (loss, *results)

    @staticmethod
    @opaque
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of what was given as `_`, from what the loss sends to the outputs."""
        refuse_second_order()
        runtime: Runtime = ctx.runtime
        if runtime.reads is not None:
            runtime.reads.refuse_changes()
        none = (None,) * 6
        if all(g is None for g in grads):
            return (*none, *(None for _ in runtime.source.gradients))
        tensors, rest = iter(ctx.saved_tensors), iter(ctx.rest)
        params = {name: next(tensors) for name in ctx.names}
        context = [next(tensors) if tensor else next(rest) for tensor in ctx.is_tensor]
        saved = list(tensors)
        del tensors
        ctx.maybe_clear_saved_tensors()  # unless the graph is kept, the sweep frees each value when it has read it
        if runtime.source.updates:
            raise CompileError(f"{runtime.options.algorithm} moves the parameters inside inference", hint=STEP)
        given, scale, used = _clamped(ctx, grads, saved)
        if runtime.compiled is not None and len(ctx.results) > 1:
            sent_to = {runtime.compiled.graph.outputs[runtime.source.errors[i]] for i in used}
            refuse_value_hooks(runtime.compiled, ctx.results, sent_to)
        with without_autocast(given[0].device.type):
            partial, finite = partial_sweep(runtime, frozenset(used)), None
            if partial:
                gradients, lasting = parted(partial(params, context, [given[i] for i in sorted(used)]))
            else:
                refuse_parts(runtime, used)
                gradients, lasting, finite = gradients_of(runtime, params, context, given, ctx.loss, ctx.call)
            if runtime.iterates:
                notice(runtime, gradients, params, context, given, finite)
        if ctx.keep is not None:
            ctx.keep(runtime, lasting)
        scale = None if scale is None or _is_one(scale) else scale
        keys = (gradient.key for gradient in runtime.source.gradients)
        reached = (gradients.get(key) if runtime.reaching[key] & used else None for key in keys)
        return (*none, *(g if g is None or scale is None else g * scale for g in reached))


def applied(
    predict: Predict,
    keep: Keep | None,
    runtime: Runtime,
    tables: Tables,
    inputs: dict[str, Tensor],
    targets: list[Tensor] | None,
) -> tuple[Tensor, ...]:
    """The outputs of a call, before them its loss where there are targets, as autograd knows them.

    An output that is an argument or a parameter is that tensor itself, and one that carries no gradient has none, where
    it lies in the memory of one that has.
    """
    by_name = dict(zip(("params", "buffers", "inputs"), (*tables, inputs), strict=True))
    sources = [by_name[g.table].get(g.entry) for g in runtime.source.gradients]
    results: tuple[Tensor, ...] = Bridge.apply(predict, keep, runtime, tables, inputs, targets, *sources)  # type: ignore[no-untyped-call]
    lead, names = len(results) - len(runtime.source.outputs), runtime.source.outputs
    carrying = {names[i] for i in runtime.source.errors}
    origin = runtime.writes.imported.graph.origin
    outputs = list(results)
    for i, name in enumerate(names, lead):
        itself = inputs.get(name, tables[0].get(origin[name]) if name in origin else None)
        if itself is not None:
            outputs[i] = itself
        elif name not in carrying and outputs[i].requires_grad:
            outputs[i] = outputs[i].detach()
    return tuple(outputs)


def _forward(predict: Predict, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: Any) -> Any:
    """Outputs and context; where targets are given the loss and its errors, all by one function if it is compiled."""
    kind = next(iter((tables[0] or inputs).values())).device.type
    if targets is not None and runtime.options.jit and runtime.compiled is not None and current(kind) is None:
        return runtime.forward(*tables, inputs, targets)
    outputs, context = predict(runtime, tables, inputs)
    return outputs, context, *(runtime.clamp(outputs, targets) if targets is not None else (None, []))


def _clamped(ctx: Any, grads: tuple[Tensor | None, ...], saved: list[Tensor]) -> tuple[Any, Tensor | None, set[int]]:
    """What inference is given of the outputs, by what its gradients are scaled, and which outputs a loss reaches.

    saved: the clamped outputs, or the errors that the loss has set there.
    """
    runtime: Runtime = ctx.runtime
    moving, inside = runtime.source.moving, ctx.targets is not None
    if moving and not inside and runtime.options.outside_loss == "refuse":
        raise CompileError(OUTSIDE, hint=INSIDE)
    sent = grads[1:] if inside else grads
    arrived = [_arrived(runtime, i, sent) for i in range(len(runtime.source.errors))]
    used = {i for i, g in enumerate(arrived) if g is not None}
    in_loss = set(runtime.in_loss) if inside and grads[0] is not None else set()
    if inside and (moving or not used):
        return ctx.targets if moving else saved, grads[0], used | in_loss
    full = [
        torch.zeros(shape, dtype=dtype, device=device) if g is None else g
        for g, (shape, dtype, device) in zip(arrived, ctx.like, strict=True)
    ]
    if inside:  # the loss is not all: what it sends is scaled here, since what else arrives is not
        saved = [e * (0 if grads[0] is None else grads[0]) for e in saved]
    beside = inside or moving
    clamped = [e - g for e, g in zip(saved, full, strict=True)] if beside else [-g for g in full]
    return clamped, None, used | in_loss


def _arrived(runtime: Runtime, index: int, grads: tuple[Tensor | None, ...]) -> Tensor | None:
    """What the loss sent to a clamped output, which may stand at several places in the model's result."""
    name = runtime.source.outputs[runtime.source.errors[index]]
    sent = [g for g, o in zip(grads, runtime.source.outputs, strict=True) if o == name and g is not None]
    return functools.reduce(torch.add, sent) if sent else None


def refuse_parts(runtime: Runtime, used: set[int]) -> None:
    """Raise CompileError where a custom backward would ask for gradients that are there for some of its results only.

    used: the clamped outputs that a loss sends something to. For these the backward could not be compiled anew.
    """
    for name, results in runtime.asking.items():
        there = [bool(outputs & used) for outputs in results]
        if any(there) and not all(there):
            raise CompileError(
                f"{name}.backward asks which gradients are there, and this loss uses some of the model's outputs only",
                hint="compile a module that returns those outputs alone, or materialize the gradients",
            )


def _is_one(scale: Tensor) -> bool:
    return scale.device.type == "cpu" and scale.item() == 1
