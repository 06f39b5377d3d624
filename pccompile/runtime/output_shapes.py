"""How long the outputs of a call will be: what its inputs say, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
from torch import Tensor

from pccompile.ir import Dim, TensorType
from pccompile.runtime.loaded_program import Interface


def is_told(length: Dim, interface: Interface) -> bool:
    """Whether the inputs of a call say how long a dimension is; else data do, when the program runs."""
    if isinstance(length, int):
        return True
    read = {d for t in interface.types.values() for d in t.shape if isinstance(d, sympy.Symbol)}
    return all(s in read for s in length.free_symbols)


def shape_of(type_: TensorType, interface: Interface, inputs: Mapping[str, Tensor]) -> tuple[int | None, ...]:
    """The shape that a value of this type has in a call; None for lengths that data decide."""
    return tuple(int(interface.length(n, inputs)) if is_told(n, interface) else None for n in type_.shape)
