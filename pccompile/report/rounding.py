"""How far rounding moves the outputs of a model, measured: what two engines may differ by without one being wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.analysis.compare import difference
from pccompile.report.gradients import Bench

TRIALS = 2
NEAR = 1e-3
"""A number this near to the border between two steps, in steps, may be rounded either way."""

STEPS = frozenset(
    {
        torch.ops.aten.round.default,
        torch.ops.aten.floor.default,
        torch.ops.aten.ceil.default,
        torch.ops.aten.trunc.default,
    }
)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a model's result."""
    return [o.detach() for o in pytree.tree_leaves(output) if isinstance(o, Tensor)]


def movement(bench: Bench, unit: float, still: list[Tensor]) -> list[float]:
    """How far each output moves, relatively, where each input and weight is off by up to `unit` of itself.

    still: the outputs of the unmoved model. What is no number counts as no movement: it excuses nothing.
    """
    moved = [0.0] * len(still)
    for seed in range(TRIALS):
        draw = torch.Generator().manual_seed(seed)
        args = bench.args
        try:
            bench.args = pytree.tree_map_only(Tensor, partial(_nudged, unit=unit, draw=draw), args)
            with _weights_nudged(bench, unit, draw):
                outputs = tensors_of(bench.run(bench.model))
        finally:
            bench.args = args
        moved = _furthest(moved, outputs, still)
    return moved


def flips(bench: Bench, still: list[Tensor]) -> list[float]:
    """How far each output moves, relatively, where numbers near a border between steps are rounded the other way."""
    moved = [0.0] * len(still)
    for seed in range(TRIALS):
        with _Unsteady(torch.Generator().manual_seed(seed)):
            outputs = tensors_of(bench.run(bench.model))
        moved = _furthest(moved, outputs, still)
    return moved


class _Unsteady(TorchDispatchMode):
    """Whatever is rounded is moved a little before."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draw = draw

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in STEPS and args[0].is_floating_point():
            args = (args[0] + NEAR * _uniform(args[0], self.draw), *args[1:])
        return func(*args, **(kwargs or {}))


def _uniform(like: Tensor, draw: torch.Generator) -> Tensor:
    return (2 * torch.rand(like.shape, generator=draw, dtype=torch.float64) - 1).to(like.device, like.dtype)


def _nudged(tensor: Tensor, unit: float, draw: torch.Generator) -> Tensor:
    return tensor * (1 + unit * _uniform(tensor, draw)) if tensor.is_floating_point() else tensor


@contextmanager
def _weights_nudged(bench: Bench, unit: float, draw: torch.Generator) -> Iterator[None]:
    """The model's parameters and buffers are off by up to `unit` of themselves inside."""
    tensors = [t for t in (*bench.model.parameters(), *bench.model.buffers()) if t.is_floating_point()]
    before = [t.detach().clone() for t in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(_nudged(tensor, unit, draw))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _furthest(moved: list[float], outputs: list[Tensor], still: list[Tensor]) -> list[float]:
    found = [difference("", a, b).relative_error for a, b in zip(outputs, still, strict=True)]
    return [max(m, f) if f < float("inf") else m for m, f in zip(moved, found, strict=True)]
