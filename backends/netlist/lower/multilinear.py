"""Products with parameters are projections that learn; products of two signals are synapses that multiply."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pccompile.backends.netlist.circuit import Ids, finite
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import lowers
from pccompile.backends.netlist.lower.selection import windows
from pccompile.backends.netlist.lower.values import Complex, Const, Param, Signal, Value, Values
from pccompile.ir import Node, Ref


def matrix(lo: Lowering, value: Value) -> tuple[str, bool, tuple[int, ...]] | None:
    """The tensor of a matrix that projections can hold, whether it is read transposed, and its shape as stored."""
    if isinstance(value, Param):
        path = lo.parameter(value.name)
        return (path, value.transposed, lo.c.tensors[path].shape) if lo.c.tensors[path].ndim == 2 else None
    if isinstance(value, Const) and value.tensor.ndim == 2 and not value.tensor.is_complex():
        array = finite(value.tensor.to(torch.float64).numpy())
        return lo.c.tensor("weights", array), False, array.shape
    return None


def dense(lo: Lowering, x: Ids, param: str, transpose: bool, width: int, *, learns: bool, bias: Ref | None) -> Ids:
    """Units W x + b, row by row."""
    node = lo.node
    more = {}
    extra: Ids | None = None
    if bias is not None:
        own_bias = lo.value(bias)
        if isinstance(own_bias, Param) and lo.tensors[own_bias.name].ndim == 1:
            more = {"bias": lo.parameter(own_bias.name), "bias_axis": x.ndim - 1}
            learns = learns or own_bias.name in lo.active
        else:
            extra = lo.ids(bias)
    pre = lo.relayed(x)
    shape = (*x.shape[:-1], width)
    carries = node.name in lo.active and (learns or lo.c.carries(x) or (extra is not None and lo.c.carries(extra)))
    name = lo.c.population(f"{node.name}.v", shape, "sum", "value", node.name, carries, **more)
    lo.c.connect(pre, name, "dense", param=param, transpose=transpose)
    if extra is not None:
        lo.c.project(np.broadcast_to(extra, shape), name)
    return lo.c.ids(name)


@lowers("aten.linear.default")
def linear(lo: Lowering, n: Node) -> Values:
    """W x + b."""
    weight = lo.value(n["weight"])
    stored_matrix = matrix(lo, weight)
    if stored_matrix is None:
        return _computed_linear(lo, n)
    param, transposed, stored = stored_matrix
    learns = isinstance(weight, Param) and weight.name in lo.active
    width = stored[1] if transposed else stored[0]
    return Signal(dense(lo, lo.ids(n["input"]), param, transposed, width, learns=learns, bias=n["bias"]))


def _computed_linear(lo: Lowering, n: Node) -> Signal:
    """W x + b whose weights are signals themselves."""
    x, weight = lo.ids(n["input"]), lo.ids(n["weight"])
    weight = weight if weight.ndim == 2 else weight[None]
    y = contracted(lo, x, weight.swapaxes(-1, -2), "product" if n["bias"] is not None else "")
    y = y.reshape(lo.shape())
    if n["bias"] is None:
        return Signal(y)
    name = lo.population("sum", y.shape, [y, lo.ids(n["bias"])])
    lo.c.project(y, name)
    lo.c.project(np.broadcast_to(lo.ids(n["bias"]), y.shape), name)
    return Signal(lo.c.ids(name))


def contracted(lo: Lowering, x: Ids, y: Ids, label: str = "") -> Ids:
    """The matrix product of two signals: one population whose synapses multiply a unit of each."""
    x = x[None] if x.ndim == 1 else x
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if len(batch) > len(string.ascii_lowercase) - 3:
        raise Unsupported(f"it has {len(batch) + 2} axes")
    row, column, inner, *before = tuple(string.ascii_lowercase[: 3 + len(batch)])
    shape = (*batch, x.shape[-2], y.shape[-1])
    result = "".join((*before, row, column))
    lengths = dict(zip(before, batch, strict=True))
    of_x, of_y = (
        (*before[len(batch) - ids.ndim + 2 :], *last) for ids, last in ((x, (row, inner)), (y, (inner, column)))
    )
    full = [c for c, n in zip(of_x[:-2], x.shape, strict=False) if n == lengths[c]]
    second = _operand(lo, y, of_y, lengths, full, f"{label}right")
    first = _operand(lo, x, of_x, lengths, second[1], f"{label}left")
    name = lo.population("sum", shape, [x, y], label)
    lo.c.connect(first[0], name, "einsum", with_=second[0], subscripts=f"{first[1]},{second[1]}->{result}")
    return lo.c.ids(name)


def _operand(
    lo: Lowering, ids: Ids, axes: Sequence[str], lengths: Mapping[str, int], elsewhere: Sequence[str], label: str
) -> tuple[str, str]:
    """A population that holds a signal, its axes in whatever order, and their letters; a relay where there is none.

    lengths: of the axes before the last two, in the result. Where the signal repeats along such an axis, and the other
    operand has it in full length (`elsewhere`), the population has it not.
    """
    for axis in range(ids.ndim - 3, -1, -1):
        first = ids.take([0], axis)
        if lengths[axes[axis]] > 1 and axes[axis] in elsewhere and bool((ids == first).all()):
            ids, axes = first.squeeze(axis), (*axes[:axis], *axes[axis + 1 :])
    source = lo.c.sources(ids)
    if len(source) == 1 and lo.c.populations[source[0]].size == ids.size:
        whole = lo.c.ids(source[0])
        order = _order(ids, whole)
        if whole.ndim == ids.ndim and np.array_equal(whole, ids.transpose(order)):
            return source[0], "".join(axes[i] for i in order)
    return lo.relayed(ids, label), "".join(axes)


def _order(ids: Ids, whole: Ids) -> list[int]:
    """The axes of `ids`, as they lie in `whole` if it has the same units in another order of axes."""
    steps = {i: int(ids.take(1, i).flat[0]) - int(ids.flat[0]) for i, n in enumerate(ids.shape) if n > 1 and ids.size}
    longer = iter(sorted(steps, key=lambda i: steps[i], reverse=True))
    single = (i for i in range(ids.ndim) if i not in steps)
    axes = [next(longer if n > 1 and ids.size else single, None) for n in whole.shape]
    return [i for i in axes if i is not None] if None not in axes else list(range(ids.ndim))


@lowers("aten.mm.default", "aten.bmm.default", "aten.matmul.default", "aten.mv.default", "aten.dot.default")
def multiplied(lo: Lowering, n: Node) -> Values:
    """A matrix product; with a parameter or a constant on one side it is one projection."""
    left, right = (a for a in n.args.values() if isinstance(a, Ref))
    first, second = lo.value(left), lo.value(right)
    if isinstance(first, Complex) or isinstance(second, Complex):
        return _complex_product(lo, left, right)
    stored_matrix = matrix(lo, second)
    if stored_matrix and not isinstance(first, Const):
        param, transposed, stored = stored_matrix
        learns = isinstance(second, Param) and second.name in lo.active
        width = stored[0] if transposed else stored[1]
        x = lo.ids(left)
        if x.shape[-1] == (stored[1] if transposed else stored[0]):
            return Signal(dense(lo, x, param, not transposed, width, learns=learns, bias=None))
    x, y = lo.ids(left), lo.ids(right)
    x = x[None] if x.ndim == 1 else x
    y = y[:, None] if y.ndim == 1 else y
    return Signal(contracted(lo, x, y).reshape(lo.shape()))


def _complex_product(lo: Lowering, left: Ref, right: Ref) -> Values:
    """(a + bi)(c + di) = ac − bd + (ad + bc) i, of matrices."""
    x, y = lo.parts(left), lo.parts(right)
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


@lowers("aten.convolution.default")
def convolution(lo: Lowering, n: Node) -> Values:
    """W ∗ x + b: a shared kernel, or products of states where the kernel is computed."""
    weight, bias = lo.value(n["weight"]), n["bias"]
    if isinstance(weight, Signal):
        return _computed_kernel(lo, n)
    shape, x = lo.shape(), lo.ids(n["input"])
    learns = isinstance(weight, Param) and weight.name in lo.active
    if isinstance(weight, Param):
        param = lo.parameter(weight.name)
    else:
        assert isinstance(weight, Const)
        param = lo.c.tensor("weights", finite(weight.tensor.numpy()))
    more = {}
    own_bias = None if bias is None else lo.value(bias)
    if isinstance(own_bias, Param):
        more = {"bias": lo.parameter(own_bias.name), "bias_axis": 1}
        learns = learns or own_bias.name in lo.active
    pre = lo.relayed(x)
    carries = n.name in lo.active and (learns or lo.c.carries(x))
    name = lo.c.population(f"{n.name}.v", shape, "sum", "value", n.name, carries, **more)
    geometry: dict[str, Any] = {a: tuple(n[a]) for a in ("stride", "padding", "dilation")}
    lo.c.connect(pre, name, "conv", param=param, transpose=bool(n["transposed"]), groups=n["groups"], **geometry)
    if bias is not None and not isinstance(own_bias, Param):
        ids = lo.ids(bias).reshape(-1, *(1,) * (len(shape) - 2))
        lo.c.project(np.broadcast_to(ids, shape), name)
    return Signal(lo.c.ids(name))


def _computed_kernel(lo: Lowering, n: Node) -> Signal:
    """Every entry of every window is multiplied with its weight."""
    if n["transposed"]:
        raise Unsupported("a transposed convolution whose kernel is computed")
    x, weight, shape, groups = lo.ids(n["input"]), lo.ids(n["weight"]), lo.shape(), int(n["groups"])
    rank = len(n["stride"])
    taken = windows(x.shape[2:], shape[2:], weight.shape[2:], n["stride"], n["padding"], n["dilation"])
    flat = x.reshape(*x.shape[:2], -1)
    patches = np.where(taken >= 0, flat[..., np.maximum(taken, 0)], 0)  # [N, C, out, k]
    patches = patches.reshape(x.shape[0], groups, x.shape[1] // groups, *taken.shape)
    patches = patches.transpose(0, 1, 3, 2, 4).reshape(x.shape[0], groups, taken.shape[0], -1)  # [N, g, out, C/g k]
    kernel = weight.reshape(groups, weight.shape[0] // groups, -1)
    y = contracted(lo, kernel[None], patches.swapaxes(-1, -2), "kernel").reshape(shape)
    if n["bias"] is None:
        return Signal(y)
    bias = np.broadcast_to(lo.ids(n["bias"]).reshape(-1, *(1,) * rank), shape)
    name = lo.population("sum", shape, [y, bias])
    lo.c.project(y, name)
    lo.c.project(bias, name)
    return Signal(lo.c.ids(name))
