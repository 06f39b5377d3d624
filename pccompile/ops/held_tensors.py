"""Tensors that the code of a derivative holds beside what it is given: a program has their entries in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class HeldTensors:
    """Those that a forward of the author's has read, and those that a backward has."""

    forward: list[Tensor] = field(default_factory=list)
    backward: list[Tensor] = field(default_factory=list)


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


__all__ = ["HeldTensors", "note_backward", "note_forward", "noting_held"]
