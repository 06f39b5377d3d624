"""A program as one step of autograd: prediction forwards, inference and learning backwards."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pccompile.backends.torch import SWEEP
from pccompile.diagnostics import CompileError
from pccompile.frontends.autocast import current, without_autocast
from pccompile.runtime.call_plan import PlainCalls
from pccompile.runtime.derivative_guards import opaque, refuse_second_order
from pccompile.runtime.divergence import notice
from pccompile.runtime.energy_alarm import gradients_of, watched
from pccompile.runtime.loaded_program import Runtime, parted
from pccompile.runtime.model_state import Tables
from pccompile.runtime.partial_losses import partial_sweep
from pccompile.runtime.plain_step import PlainStep, plain_step
from pccompile.runtime.value_hooks import refuse_value_hooks

Keep = Callable[[Runtime, Mapping[str, Tensor]], None]
"""Takes what a program has found that lasts between calls, by its path."""

OUTSIDE = "inference needs the loss, and that of this backward() was taken of the model's outputs afterwards"
INSIDE = (
    "compile with loss= and call pc.loss(x, target=y).backward(); "
    'or compile with outside_loss="linearise", which clamps the outputs by the first derivative of such a loss'
)
NOT_WATCHED = None, None
STEP = "pc.train_step(args, target, optimizer) in the place of loss.backward() and optimizer.step()"


class Bridge(torch.autograd.Function):
    """Prediction forwards, inference and learning backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        runtime: Runtime,
        tables: Tables,
        inputs: dict[str, Tensor],
        targets: Any,
        keep: Keep | None,
        *_: Tensor,
    ) -> Any:
        """The outputs; before them the loss of `targets`, where they are given."""
        plan, params = runtime.plan, tables[0]
        detached = {k: t.detach() for k, t in inputs.items()}
        outputs, context, loss, errors = _forward(runtime, tables, detached, targets)
        names = params if plan.kept is None else plan.kept
        kept = [c for c in context if isinstance(c, Tensor)]
        rest = None if len(kept) == len(context) else [None if isinstance(c, Tensor) else (c,) for c in context]
        if plan.plain and rest is None and targets is None and runtime.reads is None:
            keys = tuple(key if reaches else None for key, reaches in plan.gradients)
            runtime.plain = PlainCalls(runtime.bare("predict"), runtime.bare(SWEEP), tuple(names), keys)
        results, made, like = outputs, [], []
        if len(outputs) > 1:
            results = tuple(o if all(o is not p for p in outputs[:i]) else o.detach() for i, o in enumerate(outputs))
            made = [weakref.ref(o) for o in results]
            like = [(o.shape, o.dtype, o.device) for o in (outputs[i] for i in runtime.source.errors)]
        if plan.still:
            ctx.mark_non_differentiable(*[results[i] for i in plan.still])
        ctx.set_materialize_grads(False)
        watch = (loss.detach(), (tables, detached)) if targets is not None and watched(runtime) else NOT_WATCHED
        ctx.call = runtime, tuple(names), targets, keep, rest, len(kept), like, made, watch
        if runtime.source.moving:
            errors = [] if targets is not None else [outputs[i].detach() for i in runtime.source.errors]
        ctx.save_for_backward(*map(params.__getitem__, names), *kept, *errors)
        return results if targets is None else (loss, *results)

    @staticmethod
    @opaque
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of what was given as `_`, from what the loss sends to the outputs."""
        refuse_second_order()
        runtime, names, targets, keep, rest, count, like, made, watch = ctx.call
        plan = runtime.plan
        if runtime.reads is not None:
            runtime.reads.refuse_changes()
        none = (None,) * 5
        if all(g is None for g in grads):
            return (*none, *(None for _ in plan.gradients))
        saved: Any = ctx.saved_tensors
        params, first = dict(zip(names, saved, strict=False)), len(names)
        context, saved = list(saved[first : first + count]), list(saved[first + count :])
        if rest is not None:
            tensors = iter(context)
            context = [next(tensors) if c is None else c[0] for c in rest]
            del tensors
        ctx.maybe_clear_saved_tensors()  # unless the graph is kept, the sweep frees each value when it has read it
        if runtime.source.updates:
            raise CompileError(f"{runtime.options.algorithm} moves the parameters inside inference", hint=STEP)
        given, scale, used = _clamped(runtime, targets, like, grads, saved)
        if made and runtime.compiled is not None:
            sent_to = {runtime.compiled.graph.outputs[runtime.source.errors[i]] for i in used}
            refuse_value_hooks(runtime.compiled, made, sent_to)
        if current(given[0].device.type) is None:
            gradients, lasting = _learned(runtime, params, context, given, used, watch)
        else:
            with without_autocast(given[0].device.type):
                gradients, lasting = _learned(runtime, params, context, given, used, watch)
        if keep is not None:
            keep(runtime, lasting)
        if used == plan.errors:
            reached = [gradients.get(key) if reaches else None for key, reaches in plan.gradients]
        else:
            reached = [gradients.get(key) if runtime.reaching[key] & used else None for key, _ in plan.gradients]
        if scale is None or _is_one(scale):
            return (*none, *reached)
        return (*none, *(g if g is None else g * scale for g in reached))


_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, Bridge).apply
"""As `Bridge.apply`, which first takes all arguments out of what torch.func has wrapped them in, and left."""
NODES = frozenset(f"{step.__name__}Backward" for step in (Bridge, PlainStep))
"""What autograd calls the steps of programs in its graph."""
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def applied(
    runtime: Runtime,
    tables: Tables,
    inputs: dict[str, Tensor],
    targets: list[Tensor] | None,
    keep: Keep | None,
) -> Sequence[Tensor]:
    """The outputs of a call, before them its loss where there are targets, as autograd knows them.

    An output that is an argument or a parameter is that tensor itself, and one that carries no gradient has none, where
    it lies in the memory of one that has.
    """
    plan, places = runtime.plan, (*tables, inputs)
    sources = [places[table].get(entry) for table, entry in plan.sources]
    wrapped = any(map(_is_wrapped, inputs.values()))
    if runtime.plain is not None and targets is None and not (wrapped or torch._C._is_any_autocast_enabled()):
        return (plain_step(runtime.plain, tables, inputs, *sources),)
    apply: Callable[..., tuple[Tensor, ...]] = Bridge.apply if wrapped else _apply
    results = apply(runtime, tables, inputs, targets, keep, *sources)
    if not (plan.itself or plan.still):
        return results
    outputs, lead = list(results), len(results) - len(runtime.source.outputs)
    for i in plan.still:
        if outputs[lead + i].requires_grad:
            outputs[lead + i] = outputs[lead + i].detach()
    for i, (table, entry) in plan.itself.items():
        outputs[lead + i] = places[table][entry]
    return outputs


def _forward(runtime: Runtime, tables: Tables, inputs: dict[str, Tensor], targets: Any) -> Any:
    """Outputs and context; where targets are given the loss and its errors, all by one function if it is compiled.

    The program itself makes the casts of autocast.
    """
    kind = next(iter((tables[0] or inputs).values())).device.type
    if current(kind) is not None:
        with without_autocast(kind):
            outputs, context = runtime.bare("predict")(*tables, inputs)
    elif targets is not None and runtime.options.jit and runtime.compiled is not None:
        return runtime.forward(*tables, inputs, targets)
    else:
        outputs, context = runtime.bare("predict")(*tables, inputs)
    return outputs, context, *((None, []) if targets is None else runtime.bare("clamp")(outputs, targets))


def _learned(
    runtime: Runtime, params: Any, context: Any, given: Any, used: frozenset[int], watch: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients by key, and what lasts between calls by path."""
    partial, finite = partial_sweep(runtime, used) if used != runtime.plan.errors else None, None
    if partial is None and runtime.asking:
        refuse_parts(runtime, used)
    if partial is not None:
        gradients, lasting = parted(partial(params, context, [given[i] for i in sorted(used)]))
    elif not runtime.iterates:
        return parted(runtime.bare(SWEEP)(params, context, given))
    else:
        gradients, lasting, finite = gradients_of(runtime, params, context, given, *watch)
    if runtime.iterates:
        notice(runtime, gradients, params, context, given, finite)
    return gradients, lasting


def _clamped(
    runtime: Runtime, targets: Any, like: Any, grads: tuple[Tensor | None, ...], saved: list[Tensor]
) -> tuple[Any, Tensor | None, frozenset[int]]:
    """What inference is given of the outputs, by what its gradients are scaled, and which outputs a loss reaches.

    saved: the clamped outputs, or the errors that the loss has set there. like: of several outputs the forms.
    """
    moving, inside = runtime.source.moving, targets is not None
    if moving and not inside and runtime.options.outside_loss == "refuse":
        raise CompileError(OUTSIDE, hint=INSIDE)
    if len(grads) == 1 and not moving and grads[0] is not None:  # as most calls are: one output, and its loss outside
        return [-grads[0]], None, runtime.plan.errors
    sent = grads[1:] if inside else grads
    arrived = [_added([sent[i] for i in places]) for places in runtime.plan.places]
    used = frozenset(i for i, g in enumerate(arrived) if g is not None)
    in_loss = runtime.in_loss if inside and grads[0] is not None else frozenset[int]()
    if inside and (moving or not used):
        return targets if moving else saved, grads[0], used | in_loss
    full = [
        torch.zeros(like[i][0], dtype=like[i][1], device=like[i][2]) if g is None else g for i, g in enumerate(arrived)
    ]
    if inside:  # the loss is not all: what it sends is scaled here, since what else arrives is not
        saved = [e * (0 if grads[0] is None else grads[0]) for e in saved]
    beside = inside or moving
    clamped = [e - g for e, g in zip(saved, full, strict=True)] if beside else [-g for g in full]
    return clamped, None, used | in_loss


def _added(grads: list[Tensor | None]) -> Tensor | None:
    """What the loss sent to a clamped output, which may stand at several places in the model's result."""
    sent = [g for g in grads if g is not None]
    return functools.reduce(torch.add, sent) if sent else None


def refuse_parts(runtime: Runtime, used: frozenset[int]) -> None:
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
