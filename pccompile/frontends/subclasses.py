"""Tensors of subclasses whose operations are their own: a program has those of plain tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import Tensor

from pccompile.diagnostics import CompileError

OWN = ("torch._subclasses", "torch.nn.parameter", "torchvision")
"""Where subclasses come from that act as plain tensors do, or that only torch itself hands over, while it traces."""
HARMLESS = frozenset(
    (
        *("__new__", "__init__", "__init_subclass__", "__class__", "__slots__", "__dict__", "__weakref__"),
        *("__doc__", "__module__", "__annotations__", "__hash__", "__repr__", "__str__", "__format__"),
        *("__deepcopy__", "__reduce__", "__reduce_ex__", "__setstate__", "__getstate__"),
        *("to", "cpu", "cuda", "xpu", "as_subclass"),
    )
)
"""What a subclass may define anew: it changes no result of an operation."""


@functools.lru_cache(1024)
def acts(kind: type) -> bool:
    """Whether a kind of tensors defines what operations on it do."""
    own: list[type] = [
        k for k in kind.__mro__ if issubclass(k, Tensor) and k is not Tensor and not k.__module__.startswith(OWN)
    ]
    names = {name for k in own for name in vars(k)} - HARMLESS
    return any(hasattr(Tensor, name) for name in names)


def refuse_acting(tensors: Iterable[tuple[str, object]]) -> None:
    """Raise CompileError for a tensor, which is called by the name beside it, with operations of its own."""
    for name, tensor in tensors:
        kind: type = type(tensor)
        if kind is not Tensor and isinstance(tensor, Tensor) and acts(kind):
            what = f"{name} is a {kind.__name__}, a kind of tensor with operations of its own"
            raise CompileError(what, hint="give a plain tensor: t.as_subclass(torch.Tensor)")
