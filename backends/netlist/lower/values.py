"""What a name of the graph stands for while it is lowered to a circuit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pccompile.backends.netlist.circuit import Ids


@dataclass(frozen=True)
class Const:
    """A tensor that no presentation changes."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class Signal:
    """The states of units."""

    ids: Ids


@dataclass(frozen=True)
class Complex(Signal):
    """Units of complex numbers: the real part's and the imaginary one's along a last axis of length 2."""


@dataclass(frozen=True)
class Param:
    """A parameter of the model, or its matrix transpose, that no units hold yet."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class Tokens:
    """Entries of an input of integers or booleans, by their places in it."""

    source: str
    places: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Positions along an axis that a select population chose: `units` of it in the shape of the index tensor.

    positions[u, s] is the position that slot s of unit u stands for.
    """

    by: str
    units: np.ndarray
    positions: np.ndarray


Value = Const | Signal | Param | Tokens | Choice
Values = Value | tuple[Value, ...]
