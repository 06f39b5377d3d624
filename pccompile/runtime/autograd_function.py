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
        moving, scale, errors = runtime.source.moving, None, runtime.source.errors
        if moving and ctx.targets is None and runtime.options.outside_loss == "refuse":
            raise CompileError(OUTSIDE, hint=INSIDE)
        arrived = [_arrived(runtime, i, grads if ctx.targets is None else grads[1:]) for i in range(len(errors))]
        used = {i for i, g in enumerate(arrived) if g is not None}
        if ctx.targets is not None and (moving or not used):
            scale, given = grads[0], ctx.targets if moving else saved
        else:
            full = [
                torch.zeros(shape, dtype=dtype, device=device) if g is None else g
                for g, (shape, dtype, device) in zip(arrived, ctx.like, strict=True)
            ]
            if ctx.targets is None:
                given = [o - g for o, g in zip(saved, full, strict=True)] if moving else [-g for g in full]
            else:  # the loss is not all: what it sends is scaled here, since what else arrives is not
                sent = [e * (0 if grads[0] is None else grads[0]) for e in saved]
                given = [e - g for e, g in zip(sent, full, strict=True)]
        if ctx.targets is not None and grads[0] is not None:
            used |= runtime.in_loss
        if runtime.compiled is not None and len(ctx.results) > 1:
            sent_to = {runtime.compiled.graph.outputs[errors[i]] for i in used}
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
        found: list[Tensor | None] = []
        scale = None if scale is None or _is_one(scale) else scale
        for gradient in runtime.source.gradients:
            g = gradients.get(gradient.key) if runtime.reaching[gradient.key] & used else None
            found.append(g if g is None or scale is None else g * scale)
        return (*none, *found)


def _forward(predict: Predict, runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: Any) -> Any:
    """Outputs and context; where targets are given the loss and its errors, all by one function if it is compiled."""
    kind = next(iter((tables[0] or inputs).values())).device.type
    if targets is not None and runtime.options.jit and runtime.compiled is not None and current(kind) is None:
        return runtime.forward(*tables, inputs, targets)
    outputs, context = predict(runtime, tables, inputs)
    return outputs, context, *(runtime.clamp(outputs, targets) if targets is not None else (None, []))


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
