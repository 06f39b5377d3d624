"""What a model does to its own gradients, caught while it is captured: a graph of the forward pass does not show it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import _SingleLevelFunction
from torch.distributions.dirichlet import _Dirichlet
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from pccompile.diagnostics import CaptureError, Collector, CompileError, Location
from pccompile.frontends.forward_hooks import hook_name
from pccompile.frontends.process import replaced
from pccompile.ops.functions import record_call

APPLIED = "AutogradFunctionApply"
"""Where torch makes the Function that runs a custom one which Dynamo has traced: its backward is the author's."""


@dataclass
class AuthorGradients:
    """What was noticed while a model was captured. learning: what it computes depends on what requires a gradient."""

    learning: bool = False


@contextmanager
def author_gradients() -> Iterator[AuthorGradients]:
    """Within: custom autograd Functions are kept as operators, reentrant checkpoints run, hooks are refused."""
    apply = torch.autograd.Function.__dict__["apply"]
    hook: Callable[..., Any] = torch.Tensor.register_hook
    retain: Callable[..., Any] = torch.Tensor.retain_grad
    noticed, thread = AuthorGradients(), threading.get_ident()

    def own(cls: type[torch.autograd.Function]) -> bool:
        return cls.__module__.partition(".")[0] == "torch" and APPLIED not in cls.__qualname__ and cls is not _Dirichlet

    def keep(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return apply.__get__(None, cls)(*args, **kwargs)
        if cls is CheckpointFunction:
            noticed.learning = True
            return _run_checkpoint(*args)
        if own(cls) or kwargs:
            return apply.__get__(None, cls)(*args, **kwargs)
        return record_call(cls, args)

    def keep_bound(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        """What `apply` ends in, for an `apply` that was taken off its class before the capture."""
        if threading.get_ident() != thread or cls is CheckpointFunction or own(cls) or kwargs:
            return super(_SingleLevelFunction, cls).apply(*args, **kwargs)  # type: ignore[misc]
        return record_call(cls, args)

    def refuse(self: torch.Tensor, function: Any) -> Any:
        if threading.get_ident() != thread:
            return hook(self, function)
        raise CaptureError(
            "a hook on a value changes its gradient (Tensor.register_hook)",
            hint="write it as a custom autograd.Function, whose backward is compiled",
        )

    def refuse_retaining(self: torch.Tensor) -> Any:
        if threading.get_ident() != thread:
            return retain(self)
        raise CompileError(
            "forward asks for the gradient of a value within the model (Tensor.retain_grad)",
            hint="let forward return that value, or take the gradient of an argument or a parameter",
        )

    with (
        replaced(torch.autograd.Function, apply=classmethod(keep)),
        replaced(_SingleLevelFunction, apply=classmethod(keep_bound)),
        replaced(torch.Tensor, retain_grad=refuse_retaining, register_hook=refuse),
    ):
        yield noticed


@contextmanager
def data_as_detached() -> Iterator[None]:
    """Within: `x.data` is `x.detach()`, and `x.data = y` writes y there, which a capture notes.

    Raises CompileError where y has another shape or dtype.
    """
    thread, own = threading.get_ident(), torch._C.TensorBase.data

    def get(self: torch.Tensor) -> torch.Tensor:
        followed = isinstance(self, FakeTensor) and threading.get_ident() == thread
        return self.detach() if followed else own.__get__(self)  # type: ignore[attr-defined]

    def put(self: torch.Tensor, new: torch.Tensor) -> None:
        if not isinstance(self, FakeTensor) or threading.get_ident() != thread:
            own.__set__(self, new)  # type: ignore[attr-defined]
            return
        if (self.shape, self.dtype) != (new.shape, new.dtype):
            what = "an assignment to .data in forward gives a tensor another shape or dtype"
            raise CompileError(what, hint="assign the new tensor to the attribute instead")
        with torch.no_grad():
            self.copy_(new)

    with replaced(torch.Tensor, data=property(get, put)):
        yield


def _run_checkpoint(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    """What a reentrant checkpoint returns, with the gradient that torch gives it.

    There is one only where an argument requires it, and only for tensors that are returned alone or in a tuple.
    """
    learns = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    with nullcontext() if learns else torch.no_grad():
        results = function(*args)
    if isinstance(results, torch.Tensor):
        return results
    if not isinstance(results, tuple):
        return _detached(results)
    return tuple(r if isinstance(r, torch.Tensor) else _detached(r) for r in results)


def _detached(results: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, results)


def _gradient_off(mode: bool = True) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(not mode)


@contextmanager
def inference_without_gradient() -> Iterator[None]:
    """Within: torch.inference_mode switches gradients off as torch.no_grad does, which torch.export notes."""
    with replaced(torch._C, _InferenceMode=_gradient_off):
        yield


def refuse_backward_hooks(model: nn.Module) -> None:
    """Raise CompileError where a module has a backward hook, which would change gradients unseen."""
    problems, hint = Collector(), "remove it, or hook the parameters"
    for table in ("_backward_hooks", "_backward_pre_hooks"):
        for hook in getattr(nn.modules.module, f"_global{table}").values():
            problems.add(f"the global backward hook {hook_name(hook)} is not compiled", hint=hint)
        for path, module in model.named_modules():
            for hook in module.__dict__[table].values():
                owner = path or type(module).__name__
                problems.add(f"the backward hook {hook_name(hook)} on {owner} is not compiled", Location(path), hint)
    problems.raise_if_any()


def refuse_inference_parameters(model: nn.Module) -> None:
    """Raise CompileError where a parameter was made under torch.inference_mode: in eager torch, too, none learns."""
    problems, hint = Collector(), "make the model outside, or replace the parameter by nn.Parameter(parameter.clone())"
    for path, parameter in model.named_parameters():
        if parameter.is_inference():
            what = f"the parameter {path} was made under torch.inference_mode and can have no gradient"
            problems.add(what, Location(path), hint)
    problems.raise_if_any()


@contextmanager
def as_parameters(model: nn.Module) -> Iterator[None]:
    """Within: tensors that stand in for parameters (sharded models put views there) are parameters to torch.export."""
    replaced: list[tuple[Any, str, Any, Any]] = [
        (module, name, tensor, module.__dict__.pop(name, None))
        for module in model.modules()
        for name, tensor in module._parameters.items()
        if tensor is not None and not isinstance(tensor, nn.Parameter)
    ]
    try:
        for module, name, tensor, _ in replaced:
            module._parameters[name] = nn.Parameter(tensor.detach(), tensor.requires_grad)
        yield
    finally:
        for module, name, tensor, attribute in replaced:
            module._parameters[name] = tensor
            if attribute is not None:
                module.__dict__[name] = attribute
