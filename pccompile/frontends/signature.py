"""How a model is called: which dimensions of its arguments are free, and what its keywords are."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim as ExportDim
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.paths import Reading
from pccompile.frontends.places import Place

Varied = frozenset[tuple[int, int]]
"""Dimensions that had other lengths in other calls: the position of a tensor among all arguments, and the axis."""
INDICES = (torch.int64, torch.int32)
"""Types of tensors that hold places in a table, as tokens do."""


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


FREE = ("lengths", "batch", "nothing")
"""What may be free in a program's arguments, from the most on."""


@dataclass(frozen=True)
class CaptureForm:
    """What is known, besides example arguments, of the calls that a model is captured for.

    dynamic_shapes: as torch.export takes it; None frees what `free` of `FREE` names, where the model allows that.
    varied: dimensions that had other lengths before. states: attributes that are known to be states; others are found.
    path: what Python reads from tensors on the path to be captured; without it, reading is refused.
    constant: the positions of inputs that carry no gradient.
    """

    dynamic_shapes: Any = None
    free: str = FREE[0]
    varied: Varied = frozenset()
    states: tuple[Place, ...] = ()
    path: tuple[Reading, ...] = ()
    constant: frozenset[int] = frozenset()


def freedoms(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], form: CaptureForm) -> list[Any]:
    """What torch.export is asked to leave free, each as its dynamic_shapes, from `form.free` on until it takes it.

    "batch" is dimension 0 of every tensor, "lengths" besides the dimensions that sequences have and those that varied
    from call to call. A model may say itself what is free, in place of both. Raises CompileError where `forward` does
    not take the arguments.
    """
    if form.dynamic_shapes is not None and form.free != FREE[-1]:
        return [form.dynamic_shapes]
    if callable(own := getattr(model, "dynamic_shapes", None)) and not kwargs:
        return [own(args), None][form.free == "nothing" :]
    try:
        arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError as e:
        raise CompileError(
            f"{type(model).__name__}.forward {e}", hint="give the example arguments that forward takes"
        ) from e
    steps = {n for t in pytree.tree_leaves((args, kwargs)) for n in _steps(t)}
    batch = pytree.tree_map(lambda leaf: _free(leaf, (0,)), dict(arguments))
    axes: dict[int, set[int]] = {}
    for i, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
        axes[id(leaf)] = {*_sequence_axes(leaf, steps), *(axis for at, axis in form.varied if at == i)}
    lengths = pytree.tree_map(lambda leaf: _free(leaf, axes.get(id(leaf), ())), dict(arguments))
    attempts = [lengths, batch, None][FREE.index(form.free) :]
    return attempts[1:] if len(attempts) > 2 and lengths == batch else attempts


def _free(leaf: Any, axes: Collection[int]) -> Any:
    """Those of `axes` that torch.export may leave free: those of more than one entry."""
    if not isinstance(leaf, torch.Tensor):
        return None
    return {a: ExportDim.AUTO for a in axes if a < leaf.dim() and leaf.shape[a] > 1} or None


def _steps(leaf: Any) -> tuple[int, ...]:
    """What may be numbers of steps in a tensor of sequences: indices [batch, steps], or vectors in either order."""
    if not isinstance(leaf, torch.Tensor):
        return ()
    holds = leaf.dtype in INDICES if leaf.dim() == 2 else leaf.dim() == 3 and leaf.is_floating_point()
    return tuple(leaf.shape[:2]) if holds else ()


def _masks(leaf: Any) -> bool:
    """Whether a tensor can be a mask over pairs of steps, by its form: [steps, steps], maybe by sample and head."""
    if not isinstance(leaf, torch.Tensor) or not 2 <= leaf.dim() <= 4:
        return False
    return leaf.dtype is torch.bool or leaf.dim() < 4 or leaf.shape[1] == 1


def _sequence_axes(leaf: Any, steps: Container[int]) -> tuple[int, ...]:
    """The axes that may be batch or steps: of sequences, and of masks whose two last are as long as these."""
    if _steps(leaf):
        return 0, 1
    if _masks(leaf) and all(n in steps for n in leaf.shape[-2:]):
        return 0, leaf.dim() - 2, leaf.dim() - 1
    return (0,)
