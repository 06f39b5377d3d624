"""The functions of a generated file behind torch.compile: what `compile(..., jit=True)` runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from pccompile.diagnostics import CompileError

PASSES = ("predict", "clamp")
"""What a call runs once, besides inference and learning; compiled only where those take no steps, and are no longer."""
INDUCTOR: dict[str, str | int | bool | Callable[..., Any]] = {"layout_optimization": False, "fallback_random": True}
"""Channels-last makes training gradients of convolutional networks slower on a CPU; samples are eager torch's."""


def refuse_without_compiler() -> None:
    """Raise CompileError where torch.compile has nothing to build its kernels with."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError, RuntimeError) as e:
        hint = "install g++ or clang++, or name one in the environment variable CXX; without jit=True none is needed"
        raise CompileError("jit=True needs a C++ compiler, and there is none", hint=hint) from e


def refuse_updates(algorithm: str) -> None:
    """Raise CompileError for an algorithm that moves parameters inside inference."""
    what = f"jit=True compiles a step as a whole, and {algorithm} hands its gradients to an optimizer within it"
    raise CompileError(what, hint=f"leave out jit=True, or compile another algorithm than {algorithm}")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of a generated file by torch.compile. It is compiled anew for tensors of other types and shapes."""
    run: Callable[..., Any] = torch.compile(inspect.unwrap(function), options=INDUCTOR)

    @functools.wraps(function)
    def call(*args: Any, **numbers: Any) -> Any:
        with torch.no_grad():
            return run(*args, **numbers)

    return call


__all__ = ["PASSES", "compiled", "refuse_updates", "refuse_without_compiler"]
