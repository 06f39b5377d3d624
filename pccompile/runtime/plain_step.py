"""The step of autograd that most programs need: one output, whose loss is taken outside, and nothing that is moved on.

What `autograd_function.Bridge` decides at each call has been decided for these, see `CallPlan.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pccompile.frontends.autocast import current, without_autocast
from pccompile.runtime.call_plan import PlainCalls
from pccompile.runtime.derivative_guards import opaque, refuse_second_order
from pccompile.runtime.model_state import Tables


class PlainStep(torch.autograd.Function):
    """Prediction forwards, inference and learning backwards."""

    @staticmethod
    def forward(ctx: Any, plain: PlainCalls, tables: Tables, inputs: dict[str, Tensor], *_: Tensor) -> Tensor:
        """The output."""
        params, buffers = tables
        output: Tensor
        (output,), context = plain.predict(params, buffers, {name: t.detach() for name, t in inputs.items()})
        ctx.set_materialize_grads(False)
        ctx.plain = plain
        ctx.save_for_backward(*map(params.__getitem__, plain.kept), *context)
        return output

    @staticmethod
    @opaque
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of what was given as `_`, from what the loss sends to the output."""
        refuse_second_order()
        plain: PlainCalls = ctx.plain
        if grad is None:
            return (None,) * (3 + len(plain.keys))
        saved = ctx.saved_tensors
        params, context = dict(zip(plain.kept, saved, strict=False)), list(saved[len(plain.kept) :])
        del saved
        ctx.maybe_clear_saved_tensors()  # unless the graph is kept, the sweep frees each value when it has read it
        if current(grad.device.type) is None:
            gradients = plain.sweep(params, context, [-grad])
        else:
            with without_autocast(grad.device.type):
                gradients = plain.sweep(params, context, [-grad])
        return (None, None, None, *map(gradients.get, plain.keys))


plain_step: Callable[..., Tensor] = super(torch.autograd.Function, PlainStep).apply
"""As `PlainStep.apply`, which first takes all arguments out of what torch.func has wrapped them in, and left."""

__all__ = ["PlainStep", "plain_step"]
