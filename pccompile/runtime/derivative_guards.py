"""Derivatives that a compiled model does not have: of second order, forward-mode, and by torch.func's transforms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError

Called = TypeVar("Called", bound=Callable[..., Any])

TRACERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)
"""The modes of what records operations one by one: make_fx and AOTAutograd."""


def opaque(function: Called) -> Called:
    """`function` such that torch.compile calls it as it is, between two of its graphs."""
    reason = (
        "a compiled model runs as it is, between two graphs: leave out fullgraph=True, or give the model itself to "
        'torch.compile(model, backend="pccompile") or to torch.export'
    )
    disabled = torch.compiler.disable(function, reason=reason)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or get_eval_frame_callback() is not None:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)  # where Dynamo is not at work, nothing has to be kept from it

    return cast(Called, called)


def transformed() -> bool:
    """Whether what runs now is traced, is transformed by torch.func, or may carry tangents."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._get_dispatch_mode(TRACERS[0]) is not None
        or torch._C._get_dispatch_mode(TRACERS[1]) is not None
    )


def refuse_transforms(model: nn.Module, *values: Any) -> None:
    """Raise CompileError where a call of `model` is traced, is transformed by torch.func, or carries tangents."""
    if not transformed():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise CompileError(
            "a compiled model cannot be transformed by torch.func (grad, vjp, jvp, vmap, hessian)",
            hint="call backward() or torch.autograd.grad, or transform the model itself",
        )
    if torch._C._is_tracing() or any(torch._C._get_dispatch_mode(mode) is not None for mode in TRACERS):
        raise CompileError(
            "a compiled model cannot be traced (torch.jit.trace, make_fx): its backward pass would be autograd's",
            hint="trace the model itself, or torch.export it",
        )
    if forward_ad._current_level >= 0:
        for t in [*model.parameters(), *pytree.tree_leaves(values)]:
            if isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None:
                raise CompileError(
                    "a compiled model has no forward-mode derivative", hint="differentiate the model itself"
                )


def refuse_second_order() -> None:
    """Raise CompileError within a backward pass that is to be differentiated."""
    if torch.is_grad_enabled():
        raise CompileError(
            "a compiled model cannot be differentiated twice (create_graph=True)",
            hint="differentiate the model itself where second derivatives are needed",
        )
