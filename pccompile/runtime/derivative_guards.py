"""Derivatives that a compiled model does not have: of second order, forward-mode, and by torch.func's transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError


def refuse_transforms(model: nn.Module, *values: Any) -> None:
    """Raise CompileError where a call of `model` with `values` is transformed by torch.func or carries tangents."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise CompileError(
            "a compiled model cannot be transformed by torch.func (grad, vjp, jvp, vmap, hessian)",
            hint="call backward() or torch.autograd.grad, or transform the model itself",
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
