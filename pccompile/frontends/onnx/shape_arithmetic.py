"""Arithmetic on numbers that are known while tracing: shapes, and what exporters compute from them.

Each rule takes and returns host values, whose elements may be symbolic sizes. Returning None hands over to tensors.
"""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pccompile.frontends.onnx.registry import Node, host_rule
from pccompile.frontends.onnx.values import DTYPES, HOST_LIMIT, NUMPY, SYMBOLIC, Host, host_of, normal_axes, product
from pccompile.limits import spend

Array = np.ndarray[Any, Any]


def small(*hosts: Host | None) -> bool:
    """Whether all values are small enough for the host."""
    return all(h is None or h.array.size <= HOST_LIMIT for h in hosts)


def divide(a: Any, b: Any) -> Any:
    """The quotient of two numbers, integers truncated towards zero as ONNX wants."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return a / b
    if isinstance(a, SYMBOLIC) or isinstance(b, SYMBOLIC):
        return a // b if not isinstance(b, int) or b > 0 else -(a // -b)
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def floor(x: Any) -> Any:
    """The floor, staying a float."""
    return torch.sym_float(math.floor(x))


def ceil(x: Any) -> Any:
    """The ceiling, staying a float."""
    return torch.sym_float(math.ceil(x))


def modulo(a: Any, b: Any) -> Any:
    """The remainder with the sign of the divisor."""
    return a % b


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Div": divide,
    "Pow": np.power,
    "Mod": modulo,
    "Max": torch.sym_max,
    "Min": torch.sym_min,
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": python.eq,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "And": lambda a, b: bool(a) and bool(b),
    "Or": lambda a, b: bool(a) or bool(b),
    "Xor": lambda a, b: bool(a) != bool(b),
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "Neg": python.neg,
    "Abs": abs,
    "Floor": floor,
    "Ceil": ceil,
    "Sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]
    "Not": lambda a: not a,
    "Sign": lambda a: (a > 0) - (a < 0),
}
NUMPY_BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum} | {
    "Pow": np.power  # that of Python has no largest number
}
NUMPY_FLOAT = NUMPY_BINARY | {"Div": np.divide, "Mod": np.mod}


def objects(array: Array) -> Array:
    """The array with Python numbers as elements."""
    return array if array.dtype == object else array.astype(object)


def apply(function: Callable[..., Any], *hosts: Host) -> Array:
    """`function` of each element, broadcast."""
    result = np.frompyfunc(function, len(hosts), 1)(*(objects(h.array) for h in hosts))
    return np.asarray(result, dtype=object)


@host_rule(*BINARY)
def binary(node: Node, *hosts: Host) -> Array | Host | None:
    """Elementwise arithmetic of two or more values."""
    if not small(*hosts) or node.get("fmod") or node.get("axis") is not None:
        return None
    if node.op_type == "Pow" and (hosts[0].symbolic or hosts[1].symbolic or (hosts[1].array < 0).any()):
        return None
    total = hosts[0]
    for host in hosts[1:]:
        dtype = total.dtype
        known = NUMPY_FLOAT if dtype.is_floating_point else NUMPY_BINARY
        if total.array.dtype != object and host.array.dtype != object and node.op_type in known:
            with np.errstate(all="ignore"):
                total = Host(np.asarray(known[node.op_type](total.array, host.array)).astype(total.array.dtype), dtype)
        elif node.op_type in ("Div", "Mod") and not host.symbolic and 0 in host.tolist():
            return None
        else:
            total = host_of(apply(BINARY[node.op_type], total, host), dtype)
    return total


@host_rule(*COMPARE)
def compare(node: Node, a: Host, b: Host) -> Host | None:
    """Elementwise comparison, as booleans; a symbolic one becomes a guard."""
    if not small(a, b):
        return None
    return host_of(apply(lambda x, y: bool(COMPARE[node.op_type](x, y)), a, b), torch.bool)


@host_rule(*UNARY)
def unary(node: Node, a: Host) -> Array | None:
    """Elementwise arithmetic of one value."""
    return apply(UNARY[node.op_type], a) if small(a) and (a.symbolic or not a.dtype.is_floating_point) else None


@host_rule("Identity")
def identity(node: Node, a: Host) -> Host:
    """The value itself."""
    return a


@host_rule("Cast", "CastLike")
def cast(node: Node, a: Host, like: Host | None = None) -> Host | None:
    """The numbers with another type."""
    to = like.dtype if like is not None else DTYPES.get(node.get("to"))
    if to is None or not small(a) or to not in NUMPY:
        return None
    if to is torch.bool:
        return host_of(apply(lambda x: bool(x != 0), a), to)
    if not a.symbolic:
        return None if a.dtype is torch.bfloat16 else Host(a.array.astype(NUMPY[to]), to)
    if to.is_floating_point:
        return host_of(apply(torch.sym_float, a), to)
    return host_of(apply(torch.sym_int, a), to)


@host_rule("Shape")
def shape(node: Node, a: Host) -> Host:
    """The shape of a host value."""
    rank = a.array.ndim
    start, end = node.get("start", 0), node.get("end", rank)
    return host_of(list(a.array.shape[slice(start, end)]))


@host_rule("Size")
def size(node: Node, a: Host) -> Host:
    """How many elements there are."""
    return host_of(a.array.size)


@host_rule("Gather")
def gather(node: Node, data: Host, indices: Host) -> Array | None:
    """Elements along one axis."""
    if not small(data) or indices.symbolic or data.array.ndim == 0:
        return None
    return np.asarray(np.take(data.array, indices.array.astype(np.int64), axis=node.get("axis", 0)))


@host_rule("Concat")
def concat(node: Node, *hosts: Host) -> Array | None:
    """The values one after the other."""
    arrays = [objects(h.array) if any(h.symbolic for h in hosts) else h.array for h in hosts]
    return np.concatenate(arrays, axis=node.get("axis", 1)) if small(*hosts) else None


@host_rule("Slice")
def slice_(
    node: Node,
    data: Host,
    starts: Host | None = None,
    ends: Host | None = None,
    axes: Host | None = None,
    steps: Host | None = None,
) -> Array | None:
    """A part of the value."""
    begin = starts.tolist() if starts is not None else list(node.get("starts"))
    stop = ends.tolist() if ends is not None else list(node.get("ends"))
    along = axes.tolist() if axes is not None else list(node.get("axes") or range(len(begin)))
    step = steps.tolist() if steps is not None else [1] * len(begin)
    if not small(data) or any(isinstance(x, SYMBOLIC) for x in (*begin, *stop, *step)):
        return None
    where = [slice(None)] * data.array.ndim
    for axis, first, last, stride in zip(along, begin, stop, step, strict=True):
        size = data.array.shape[axis]
        last = None if stride < 0 and last < -size else last
        where[axis] = slice(first, last, stride)
    return np.asarray(data.array[tuple(where)])


@host_rule("Squeeze")
def squeeze(node: Node, data: Host, axes: Host | None = None) -> Array:
    """Without axes of size one."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    if chosen is None:
        return np.squeeze(data.array)
    return np.squeeze(data.array, axis=tuple(chosen))


@host_rule("Unsqueeze")
def unsqueeze(node: Node, data: Host, axes: Host | None = None) -> Array:
    """With more axes of size one."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    return np.expand_dims(data.array, tuple(chosen))


@host_rule("Reshape")
def reshape(node: Node, data: Host, target: Host | None = None) -> Array | None:
    """With another shape."""
    if target is None or target.symbolic or not small(data):
        return None
    sizes = target.tolist()
    if not node.get("allowzero", 0):
        sizes = [data.array.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    return data.array.reshape(sizes)


@host_rule("Flatten")
def flatten(node: Node, data: Host) -> Array:
    """As a matrix."""
    axis = node.get("axis", 1)
    return data.array.reshape(product(data.array.shape[:axis]), -1)


@host_rule("Transpose")
def transpose(node: Node, data: Host) -> Array | None:
    """With permuted axes."""
    return np.transpose(data.array, node.get("perm")) if small(data) else None


@host_rule("Expand", "Tile")
def expand(node: Node, data: Host, sizes: Host) -> Array | None:
    """Repeated to a shape."""
    if sizes.symbolic or product(sizes.tolist()) * data.array.size > HOST_LIMIT:
        return None
    if node.op_type == "Tile":
        return np.tile(data.array, sizes.tolist())
    return np.array(np.broadcast_to(data.array, np.broadcast_shapes(data.array.shape, tuple(sizes.tolist()))))


@host_rule("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Host) -> Host | None:
    """One number repeated to a shape."""
    if sizes.symbolic or product(sizes.tolist()) > HOST_LIMIT:
        return None
    value = node.get("value")
    fill = value.array.reshape(-1)[0] if value is not None else np.float32(0)
    return Host(np.full(sizes.tolist(), fill), value.dtype if value is not None else torch.float32)


@host_rule("Range")
def range_(node: Node, start: Host, limit: Host, delta: Host) -> Array | None:
    """Evenly spaced numbers."""
    if any(h.symbolic for h in (start, limit, delta)) or start.dtype.is_floating_point:
        return None
    numbers = range(start.item(), limit.item(), delta.item())
    return np.asarray(numbers, dtype=NUMPY[start.dtype]) if len(numbers) <= HOST_LIMIT else None


@host_rule("Where")
def where(node: Node, condition: Host, a: Host, b: Host) -> Host | None:
    """Elements of one or the other value."""
    if not small(condition, a, b):
        return None
    symbolic = a.symbolic or b.symbolic
    left, right = (objects(a.array), objects(b.array)) if symbolic else (a.array, b.array)
    return host_of(np.where(condition.array.astype(bool), left, right), a.dtype)


REDUCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "ReduceProd": product,
    "ReduceSum": sum,
    "ReduceMax": lambda items: torch.sym_max(*items) if len(items) > 1 else items[0],
    "ReduceMin": lambda items: torch.sym_min(*items) if len(items) > 1 else items[0],
}


@host_rule(*REDUCTIONS)
def reduce(node: Node, data: Host, axes: Host | None = None) -> Array | None:
    """The sum, product or extremum of a vector."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    if (
        data.array.ndim != 1
        or data.array.size == 0
        or not small(data)
        or (data.dtype.is_floating_point and not data.symbolic)
    ):
        return None
    if chosen == [] and node.get("noop_with_empty_axes", 0):
        return data.array
    if normal_axes(chosen or None, 1) != [0]:
        return None
    total = REDUCTIONS[node.op_type](data.tolist())
    result = np.empty((1,) if node.get("keepdims", 1) else (), dtype=object)
    result[...] = total
    return result


@host_rule("Split")
def split(node: Node, data: Host, sizes: Host | None = None) -> list[Host] | None:
    """Parts of the value along an axis."""
    lengths = sizes.tolist() if sizes is not None else node.get("split")
    axis = node.get("axis", 0)
    if lengths is None:
        extent, count = data.array.shape[axis], node.get("num_outputs", len(node.outputs))
        spend("entries", count, node.op_type)
        each = -(-extent // count)
        lengths = [min(each, extent - i * each) for i in range(count)]
    if not small(data) or any(isinstance(s, SYMBOLIC) for s in lengths):
        return None
    parts = np.split(data.array, np.cumsum(lengths)[:-1].tolist(), axis=axis)
    return [Host(p, data.dtype) for p in parts]


@host_rule("ScatterND", "ScatterElements")
def scatter(node: Node, data: Host, indices: Host, updates: Host) -> Array | None:
    """A vector of sizes with some of them replaced."""
    if node.get("reduction", "none") != "none" or data.array.ndim != 1 or indices.symbolic or not small(data):
        return None
    result = objects(data.array).copy()
    result[indices.array.reshape(-1).astype(np.int64)] = objects(updates.array).reshape(-1)
    return result


@host_rule("NonZero")
def non_zero(node: Node, data: Host) -> Host | None:
    """Where the value is not zero, as `[rank, count]`."""
    if data.symbolic or not small(data) or data.array.ndim == 0:
        return None
    return host_of(np.stack(np.nonzero(data.array)).astype(np.int64))


@host_rule("CumSum")
def cumulative_sum(node: Node, data: Host, axis: Host) -> Array | None:
    """Running sums of a vector of integers."""
    if (
        data.array.ndim != 1
        or node.get("exclusive")
        or node.get("reverse")
        or data.dtype.is_floating_point
        or not small(data)
    ):
        return None
    return np.cumsum(objects(data.array))
