"""What the code of a derivative is, and the tensors that it holds beside what it is given.

A program has the entries of those tensors in it, and what the code made of everything else that it read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import CellType
from typing import Any

from torch import Tensor


@dataclass
class HeldTensors:
    """Those that a forward of the author's has read, and those that a backward has.

    derivatives: the functions that were run as the derivative of an operator, by its name.
    """

    forward: list[Tensor] = field(default_factory=list)
    backward: list[Tensor] = field(default_factory=list)
    derivatives: dict[str, tuple[Callable[..., Any], ...]] = field(default_factory=dict)


_noted: ContextVar[HeldTensors | None] = ContextVar("held", default=None)


@contextmanager
def noting_held() -> Iterator[HeldTensors]:
    """Within: what traces of derivatives hold is noted."""
    held = HeldTensors()
    token = _noted.set(held)
    try:
        yield held
    finally:
        _noted.reset(token)


def note_forward(tensors: Iterable[Tensor]) -> None:
    """Note what the forward of a custom Function holds."""
    if (held := _noted.get()) is not None:
        held.forward += tensors


def note_backward(tensors: Iterable[Tensor]) -> None:
    """Note what a custom backward holds."""
    if (held := _noted.get()) is not None:
        held.backward += tensors


def note_derivative(operator: str, results: Iterable[Tensor]) -> None:
    """Note the Python functions that autograd runs for results of an operator, as it was told of them."""
    if (held := _noted.get()) is None:
        return
    for result in results:
        function = getattr(type(result.grad_fn), "_forward_cls", None)
        if function is not None:
            held.derivatives[operator] = tuple(_behind(function.backward, set()))


def _behind(function: Any, seen: set[int]) -> Iterator[Callable[..., Any]]:
    """`function`, and the functions, or records of them, that torch's own wrappers around a formula hold."""
    yield function
    filled = (cell for cell in getattr(function, "__closure__", None) or () if cell != CellType())
    for content in (cell.cell_contents for cell in filled):
        if id(content) in seen:
            continue
        seen.add(id(content))
        formulas = (getattr(content, name, None) for name in ("_backward_fn", "_setup_context_fn"))
        for formula in (content, *formulas):
            if callable(formula):
                yield from _behind(formula, seen)
