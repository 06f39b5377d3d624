"""A compiled module passes for its model: it has the model's attributes, methods and signature besides its own.

A method runs on the model itself, which is right for what has no gradients (`generate`, `save_pretrained`). One that
calls layers with gradients enabled would go around predictive coding, and is refused by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pccompile.diagnostics import CompileError


def of_model(model: nn.Module, name: str) -> Any:
    """An attribute of the model; a method such that it learns nothing. Raises AttributeError where there is none."""
    found = getattr(model, name)
    if not (isinstance(found, MethodType) and found.__self__ is model):
        return found

    @functools.wraps(found)
    def method(*args: Any, **kwargs: Any) -> Any:
        with refusing_gradients(model, name):
            return found(*args, **kwargs)

    return method


@contextmanager
def refusing_gradients(model: nn.Module, name: str) -> Iterator[None]:
    """Within, a call of the model or of one of its modules with gradients enabled raises CompileError."""
    own = set(model.modules())

    def refuse(module: nn.Module, args: Any) -> None:
        if module in own and torch.is_grad_enabled():
            kind = type(model).__name__
            raise CompileError(
                f"{kind}.{name} computes with {kind} itself: its gradients would be backpropagation's",
                hint=f"call the compiled module, or {name} under torch.no_grad()",
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def takes(module: nn.Module, name: str) -> bool:
    """Whether an attribute that is set is the model's: it is public, and the model has it where the module has not."""
    if name.startswith("_"):
        return False
    return name not in module.__dict__ and not hasattr(type(module), name) and hasattr(module.__dict__["model"], name)


class BoundForward(functools.partial[Any]):
    """`forward` of a compiled module, with the signature of the model's."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.args[0].__dict__["model"].forward)


class Forward:
    """A method whose signature, as `inspect` tells it, is that of the model's `forward`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, module: Any, owner: type) -> Any:
        if module is None:
            return self.function
        if torch.compiler.is_dynamo_compiling():  # which follows no subclass, and asks for no signature
            return functools.partial(self.function, module)
        return BoundForward(self.function, module)
