"""Derivatives that forward itself takes (autograd.grad, torch.func.grad), captured as the operations that they run.

torch.export traces above autograd, where the steps of a backward pass read values that no graph shows. A model that
differentiates is traced below it: then these steps are operations like others, and have derivatives of their own. What
autograd alone knows there is written out: that gradients are off, and what is detached.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms, vmap
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.diagnostics import CaptureError
from pccompile.frontends.process import replaced

DETACH = torch.ops.aten.detach.default
DETACHING = (Tensor.detach, Tensor.detach_, torch.detach, torch.detach_)
TORCH = f"{Path(torch.__file__).parent}/"
CONTROL = f"{TORCH}_higher_order_ops/"
PROXY = torch._C._TorchDispatchModeKey.PROXY


class Differentiates(Exception):
    """Forward differentiates, and is traced above autograd."""


@dataclass
class Transforms:
    """What was noticed of torch.func. entered: forward transforms a function, which may fail above autograd."""

    entered: bool = False


@contextmanager
def noticed_derivatives(below: bool) -> Iterator[Transforms]:
    """Within: forward is traced; where it differentiates, Differentiates is raised unless that is `below` autograd.

    Raises CaptureError where forward leaves gradients in its tensors.
    """
    run, nest = vars(torch.autograd)["_engine_run_backward"], eager_transforms.grad_increment_nesting
    batch, push = vmap.vmap_increment_nesting, eager_transforms.jvp_increment_nesting
    thread, noticed = threading.get_ident(), Transforms()

    def noticed_run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and not _by_control_flow():
            if kwargs.get("accumulate_grad"):
                hint = "take it by torch.autograd.grad, which returns it"
                raise CaptureError("forward calls backward(), which leaves gradients in its tensors", hint=hint)
            if not below:
                raise Differentiates
        return run(outputs, *args, **kwargs)

    def noticed_nest() -> Any:
        if threading.get_ident() == thread and not below and not _by_control_flow():
            raise Differentiates
        return nest()

    def noticed_batch(*args: Any) -> Any:
        noticed.entered = True
        return batch(*args)

    def noticed_push() -> Any:
        noticed.entered = True
        return push()

    def backwards(function: Any, argnums: Any = 0, has_aux: bool = False, **how: Any) -> Any:
        return eager_transforms.jacrev(function, argnums, has_aux=has_aux)

    known = {"jacfwd": backwards} if below else {}  # of torch.func.hessian: below autograd nothing runs forwards
    with (
        replaced(torch.autograd, _engine_run_backward=noticed_run),
        replaced(eager_transforms, grad_increment_nesting=noticed_nest, jvp_increment_nesting=noticed_push, **known),
        replaced(vmap, vmap_increment_nesting=noticed_batch),
    ):
        yield noticed


def _by_control_flow() -> bool:
    """Whether it is torch.cond, scan or while_loop that differentiates its own bodies, and not the model."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, contextlib.__file__)):
        if frame.f_code.co_filename.startswith(CONTROL):
            return True
        frame = frame.f_back
    return False


@contextmanager
def below_autograd() -> Iterator[None]:
    """Within a trace by torch.export: operations are noted below autograd, in the same graph."""
    mode = torch._ops.unset_mode_pre_dispatch(PROXY)
    assert mode is not None
    mode.pre_dispatch, key, mode._dispatch_key = False, mode._dispatch_key, None
    try:
        detaching = _Detaching()
        above = proxy_tensor._temp_remove_pre_dispatch_torch_function_mode
        with above(), mode, detaching, _WithoutGradient(mode.tracer, detaching):
            yield
    finally:
        mode.pre_dispatch, mode._dispatch_key = True, key
        torch._ops._set_mode_pre_dispatch(mode)


class _Detaching(TorchFunctionMode):
    """Says whether it is the model that detaches a value, or autograd, which does so with what it saves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of a call."""
        before, self.now = self.now, self.now or func in DETACHING
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.now = before


class _WithoutGradient(TorchDispatchMode):
    """Detaches in the graph what has no gradient for autograd: what is made where gradients are off."""

    def __init__(self, tracer: Any, detaching: _Detaching) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer, self.detaching = tracer, detaching

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of an operation. Raises CaptureError for what the graph would not say."""
        if func is DETACH and not self.detaching.now:
            return self._alias(args[0])
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(torch.is_autocast_enabled(t.device.type) for t in given if t.device.type != "meta"):
            raise CaptureError("forward differentiates under autocast", hint="switch autocast off there")
        result = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() or func is DETACH:
            return result
        written = func._schema.is_mutable and any(t.requires_grad and not t.is_leaf for t in given)
        if written:
            hint = "write it without changing a value in place"
            raise CaptureError(
                "forward differentiates, and changes a value in place where gradients are off", hint=hint
            )
        known = set(map(id, given))
        return pytree.tree_map_only(Tensor, lambda t: t if id(t) in known else _detached(t), result)

    def _alias(self, saved: Tensor) -> Tensor:
        """What autograd keeps of a value: the same value to the graph."""
        node = proxy_tensor.get_proxy_slot(saved, self.tracer, None)
        if node is None:
            return DETACH(saved)  # type: ignore[no-any-return]
        with proxy_tensor.disable_proxy_modes_tracing():
            kept: Tensor = DETACH(saved)
        proxy_tensor.set_proxy_slot(kept, self.tracer, node)
        return kept


def _detached(value: Tensor) -> Tensor:
    """A value without its gradient, where it could have one."""
    return DETACH(value) if value.is_floating_point() or value.is_complex() else value
