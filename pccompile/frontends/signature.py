"""How a model is called: which dimensions of its arguments are free, and what its keywords are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim as ExportDim
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError


@contextmanager
def spelled_out(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within: `forward` has a parameter for each keyword argument that it takes through `**`.

    torch.export (2.13) loses count of free dimensions where there is a `**` that takes something.
    """
    forward = model.forward
    parameters = inspect.signature(forward).parameters
    extra = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY) for k in kwargs if k not in parameters]
    if not extra or all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        yield
        return

    def call(*args: Any, **named: Any) -> Any:
        return forward(*args, **named)

    kept = [p for p in parameters.values() if p.kind is not p.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*kept, *extra])  # type: ignore[attr-defined]
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = call
    try:
        yield
    finally:
        del model.__dict__["forward"]
        model.__dict__.update({"forward": before} if before else {})


def free_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dimension 0 of every tensor argument, to be free where the model allows it; or what the model itself says."""
    if callable(own := getattr(model, "dynamic_shapes", None)) and not kwargs:
        return own(args)

    def free(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] > 1:
            return {0: ExportDim.AUTO}
        return None

    try:
        arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as e:
        raise CompileError(
            f"{type(model).__name__}.forward {e}", hint="give the example arguments that forward takes"
        ) from e
    return pytree.tree_map(free, dict(arguments))
