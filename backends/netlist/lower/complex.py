"""Complex tensors: two units a number, the real part's and the imaginary one's, along a last axis of length 2.

Linear operations between real and complex tensors are linear in the parts, and products are four real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pccompile.backends.netlist.circuit import Ids
from pccompile.backends.netlist.lower.linear import by_matrix
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.multilinear import OPERANDS, contracted, multiplied
from pccompile.backends.netlist.lower.registry import HANDLERS, Handler, lowers
from pccompile.backends.netlist.lower.values import Signal, Values
from pccompile.backends.netlist.lower.wiring import MOVERS, run
from pccompile.ir import Node, Ref

LARGEST = 2**22
"""The most entries of a transform's matrix."""


@dataclass(frozen=True)
class Complex(Signal):
    """Units of complex numbers: [..., 2]."""


def parts(lo: Lowering, arg: Ref) -> Ids:
    """The units of a tensor as [..., 2]; a real one has no imaginary part."""
    found = lo.value(arg)
    if isinstance(found, Complex):
        return found.ids
    tensor = lo.constant(arg)
    if tensor is not None and tensor.is_complex():
        return lo.c.constant(torch.view_as_real(tensor.to(torch.complex128)).numpy(), lo.node.name)
    ids = lo.ids(arg)
    return np.stack([ids, np.zeros_like(ids)], -1)


def is_complex(lo: Lowering, n: Node) -> bool:
    """Whether a node reads complex units."""
    return any(isinstance(lo.env[i], Complex) for i in n.inputs)


@lowers("aten.view_as_complex.default")
def paired(lo: Lowering, n: Node) -> Values:
    """Two reals as one number: nothing but a name."""
    return Complex(lo.ids(n["self"]))


@lowers("aten.view_as_real.default")
def unpaired(lo: Lowering, n: Node) -> Values:
    """One number as two reals."""
    return Signal(parts(lo, n["self"]))


@lowers("aten._fft_r2c.default", "aten._fft_c2r.default", "aten._fft_c2c.default")
def transformed(lo: Lowering, n: Node) -> Values:
    """A Fourier transform as a matrix of the parts, found by probing it with unit vectors."""
    real_in, real_out = n.op == "aten._fft_r2c.default", n.op == "aten._fft_c2r.default"
    ids = lo.ids(n["self"]) if real_in else parts(lo, n["self"])
    shape = (*lo.shape(), *(() if real_out else (2,)))

    def transform(unit: torch.Tensor) -> torch.Tensor:
        result = lo.evaluated(n, {n["self"]: unit if real_in else torch.view_as_complex(unit)})
        return result if real_out else torch.view_as_real(result)

    signal = by_matrix(lo, ids, shape, transform, LARGEST)
    return signal if real_out else Complex(signal.ids)


def _moved(lo: Lowering, n: Node, otherwise: Handler) -> Values:
    if not is_complex(lo, n):
        return otherwise(lo, n)
    if n.args.get("value"):
        raise Unsupported("a number is written among complex ones")
    (source,) = [r for r in n.inputs if isinstance(lo.env[r], Complex)]
    ids = parts(lo, source)
    return Complex(np.stack([run(lo, n, {source: ids[..., i]}, 0) for i in (0, 1)], -1))


def _multiplied(lo: Lowering, n: Node, otherwise: Handler) -> Values:
    """(a + bi)(c + di) = ac − bd + (ad + bc) i, of matrices."""
    if not is_complex(lo, n):
        return otherwise(lo, n)
    x, y = (parts(lo, n[a]) for a in OPERANDS[n.op.split(".")[1]])
    if x.ndim < 3 or y.ndim < 3:
        raise Unsupported("a complex product with a vector")
    a, b, c, d = x[..., 0], x[..., 1], y[..., 0], y[..., 1]
    ac, bd, ad, bc = (contracted(lo, u, v, f"part{i}") for i, (u, v) in enumerate(((a, c), (b, d), (a, d), (b, c))))
    name = lo.population("sum", (*ac.shape, 2), [ac, bd, ad, bc])
    zero = np.zeros_like(ac)
    lo.c.project(np.stack([ac, ad], -1), name)
    lo.c.project(np.stack([bd, zero], -1), name, gain=-1.0)
    lo.c.project(np.stack([zero, bc], -1), name)
    return Complex(lo.c.ids(name).reshape(*lo.shape(), 2))


def _wrap(op: str, of: Callable[[Lowering, Node, Handler], Values], otherwise: Handler) -> None:
    HANDLERS[op] = lambda lo, n: of(lo, n, otherwise)


for name in MOVERS:
    if name in HANDLERS and name not in ("aten.cat.default", "aten.stack.default"):
        _wrap(name, _moved, HANDLERS[name])
for name in ("aten.mm.default", "aten.bmm.default", "aten.matmul.default"):
    _wrap(name, _multiplied, multiplied)
