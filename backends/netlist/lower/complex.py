"""Complex tensors as two units a number, and Fourier transforms, which are linear in the parts."""

from __future__ import annotations

import torch

from pccompile.backends.netlist.lower.linear import by_matrix
from pccompile.backends.netlist.lower.lowering import Lowering
from pccompile.backends.netlist.lower.registry import lowers
from pccompile.backends.netlist.lower.values import Complex, Signal, Values
from pccompile.ir import Node

LARGEST = 2**22
"""The most entries of a transform's matrix."""


@lowers("aten.view_as_complex.default")
def paired(lo: Lowering, n: Node) -> Values:
    """Two reals as one number: nothing but a name."""
    return Complex(lo.ids(n["self"]))


@lowers("aten.view_as_real.default")
def unpaired(lo: Lowering, n: Node) -> Values:
    """One number as two reals."""
    return Signal(lo.parts(n["self"]))


@lowers("aten._fft_r2c.default", "aten._fft_c2r.default", "aten._fft_c2c.default")
def transformed(lo: Lowering, n: Node) -> Values:
    """A Fourier transform as a matrix of the parts, found by probing it with unit vectors."""
    real_in, real_out = n.op == "aten._fft_r2c.default", n.op == "aten._fft_c2r.default"
    ids = lo.ids(n["self"]) if real_in else lo.parts(n["self"])
    shape = (*lo.shape(), *(() if real_out else (2,)))

    def transform(unit: torch.Tensor) -> torch.Tensor:
        result = lo.evaluated(n, {n["self"]: unit if real_in else torch.view_as_complex(unit)})
        return result if real_out else torch.view_as_real(result)

    signal = by_matrix(lo, ids, shape, transform, LARGEST)
    return signal if real_out else Complex(signal.ids)
