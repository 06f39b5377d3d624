"""What a model does to its own gradients, caught while it is captured: a graph of the forward pass does not show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pccompile.diagnostics import Collector, CompileError, Location
from pccompile.ops.functions import record_call

APPLIED = "AutogradFunctionApply"
"""Where torch makes the Function that runs a custom one which Dynamo has traced: its backward is the author's."""


@contextmanager
def author_gradients() -> Iterator[None]:
    """Within: custom autograd Functions are kept as operators, and hooks on values are refused."""
    apply, hook = torch.autograd.Function.__dict__["apply"], torch.Tensor.register_hook

    def keep(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        own = cls.__module__.partition(".")[0] == "torch" and APPLIED not in cls.__qualname__
        if own or kwargs:
            return apply.__get__(None, cls)(*args, **kwargs)
        return record_call(cls, args)

    def refuse(self: torch.Tensor, function: Any) -> Any:
        raise CompileError(
            "a hook on a value changes its gradient (Tensor.register_hook)",
            hint="write it as a custom autograd.Function, whose backward is compiled",
        )

    torch.autograd.Function.apply = classmethod(keep)  # type: ignore[assignment, method-assign]
    torch.Tensor.register_hook = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        torch.Tensor.register_hook = hook  # type: ignore[method-assign]


def refuse_backward_hooks(model: nn.Module) -> None:
    """Raise CompileError where a module has a backward hook, which would change gradients unseen."""
    problems = Collector()
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            problems.add(
                "a backward hook on a module is not compiled", Location(path), "remove it, or hook the parameters"
            )
    problems.raise_if_any()
