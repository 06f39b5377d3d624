"""Selections: a unit of its own compares what it reads, and remembers which slot won."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from pccompile.backends.netlist.circuit import grouped
from pccompile.backends.netlist.lower.linear import axes, reduced, rows, weighted
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import lowers
from pccompile.backends.netlist.lower.values import Choice, Const, Signal, Values
from pccompile.ir import Node


def windows(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> np.ndarray:
    """The flat places that each window reads, [windows, entries of the kernel]; −1 lies outside."""
    table = []
    for at in itertools.product(*map(range, out)):
        entries = []
        for offset in itertools.product(*map(range, kernel)):
            place = [a * s - p + o * d for a, s, p, o, d in zip(at, stride, padding, offset, dilation, strict=True)]
            inside = all(0 <= c < d for c, d in zip(place, size, strict=True))
            entries.append(int(np.ravel_multi_index(place, tuple(size))) if inside else -1)
        table.append(entries)
    return np.array(table, dtype=np.int64).reshape(math.prod(out), math.prod(kernel))


def select(
    lo: Lowering, table: np.ndarray, ranks: np.ndarray | None = None, smallest: bool = False, label: str = ""
) -> str:
    """A select population: unit [...] picks among the units table[..., :], of which −1 are none."""
    shape, flat = table.shape[:-1], table.reshape(-1, table.shape[-1])
    used = flat[flat >= 0]
    sources = lo.c.sources(used)
    if len(sources) != 1 or (used == 0).any():
        compact, inverse = np.unique(used, return_inverse=True)
        fresh = lo.c.ids(lo.relayed(compact, f"{label}candidates"))
        flat = flat.copy()
        flat[flat >= 0] = fresh[inverse]
        sources = lo.c.sources(flat)
    (source,) = sources
    ranked = None if ranks is None else lo.c.tensor("ranks", np.broadcast_to(ranks, shape).reshape(-1).astype(np.int64))
    name = lo.population("select", shape, [flat], label, smallest=smallest, ranks=ranked)
    index = np.where(flat >= 0, flat - lo.c.first[source], -1)
    lo.c.connect(source, name, "gather", index=lo.c.tensor("index", index))
    return name


def first_shape(n: Node) -> tuple[int, ...]:
    """The shape of the first of several results."""
    assert isinstance(n.type, tuple)
    assert n.type[0] is not None
    return tuple(map(int, n.type[0].shape))


def _spread(value: object, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(map(int, values * rank if len(values) == 1 else values))


@lowers("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool(lo: Lowering, n: Node) -> Values:
    """The largest entry of each window."""
    rank = axes(n.op)
    ids = lo.ids(n["self"])
    shape = first_shape(n)
    kernel, padding, dilation = (_spread(n[a], rank) for a in ("kernel_size", "padding", "dilation"))
    stride = _spread(n["stride"], rank) if n["stride"] else kernel
    taken = windows(ids.shape[-rank:], shape[-rank:], kernel, stride, padding, dilation)
    flat = ids.reshape(-1, math.prod(ids.shape[-rank:]))
    table = np.where(taken >= 0, flat[:, np.maximum(taken, 0)], -1).reshape(*shape, taken.shape[1])
    name = select(lo, table)
    return Signal(lo.c.ids(name)), Choice(name, np.arange(math.prod(shape)).reshape(shape), np.zeros((0, 0), np.int64))


@lowers("aten.adaptive_max_pool2d.default", "aten.adaptive_max_pool3d.default")
def adaptive_max_pool(lo: Lowering, n: Node) -> Values:
    """The largest entry of each of as many windows as are asked for: from ⌊i s / o⌋ up to ⌈(i + 1) s / o⌉."""
    rank = axes(n.op)
    ids, shape = lo.ids(n["self"]), first_shape(n)
    size, out = ids.shape[-rank:], shape[-rank:]
    places = np.arange(math.prod(size)).reshape(size)
    cells = []
    for at in itertools.product(*map(range, out)):
        spans = [slice(i * s // o, -(-(i + 1) * s // o)) for i, s, o in zip(at, size, out, strict=True)]
        cells.append(places[tuple(spans)].reshape(-1))
    width = max(map(len, cells))
    taken = np.array([[*f, *[-1] * (width - len(f))] for f in cells])
    flat = ids.reshape(-1, math.prod(size))
    table = np.where(taken >= 0, flat[:, np.maximum(taken, 0)], -1).reshape(*shape, width)
    name = select(lo, table)
    return Signal(lo.c.ids(name)), Choice(name, np.arange(math.prod(shape)).reshape(shape), np.zeros((0, 0), np.int64))


@lowers("aten.amax.default", "aten.amin.default", "aten.max.default", "aten.min.default")
def extreme(lo: Lowering, n: Node) -> Values:
    """The largest or smallest entry over some axes. Where several are equal, the first alone is chosen."""
    ids = lo.ids(n["self"])
    table = rows(ids, reduced(n, ids.ndim)).reshape(*lo.shape(), -1)
    return Signal(lo.c.ids(select(lo, table, smallest=n.op in ("aten.amin.default", "aten.min.default"))))


def _along(lo: Lowering, n: Node, count: int, ranks: np.ndarray | None, smallest: bool, keep: bool) -> Values:
    """Winners along one axis: `count` of them, unit r of rank ranks[r]; values and positions."""
    ids = lo.ids(n["self"])
    scalar = ids.ndim == 0
    ids = ids.reshape(1) if scalar else ids
    dim = int(n["dim"]) % ids.ndim
    moved = np.moveaxis(ids, dim, -1)
    table = np.broadcast_to(moved[..., None, :], (*moved.shape[:-1], count, moved.shape[-1]))
    name = select(lo, table, ranks, smallest)
    units = np.arange(math.prod(table.shape[:-1])).reshape(table.shape[:-1])
    positions = np.broadcast_to(np.arange(moved.shape[-1]), (units.size, moved.shape[-1]))
    winners, where = np.moveaxis(lo.c.ids(name).reshape(units.shape), -1, dim), np.moveaxis(units, -1, dim)
    if not keep or scalar:
        rest = [*winners.shape[:dim], *winners.shape[dim + 1 :]]
        winners, where = winners.reshape(rest), where.reshape(rest)
    return Signal(winners), Choice(name, where, positions)


@lowers("aten.max.dim", "aten.min.dim")
def extreme_along(lo: Lowering, n: Node) -> Values:
    """The largest or smallest entry along an axis, and where it was."""
    return _along(lo, n, 1, None, n.op == "aten.min.dim", bool(n["keepdim"]))


@lowers("aten.argmax.default", "aten.argmin.default")
def position(lo: Lowering, n: Node) -> Values:
    """Where the largest or smallest entry along an axis is."""
    if n["dim"] is None:
        raise Unsupported("over all axes")
    values_and_positions = _along(lo, n, 1, None, n.op == "aten.argmin.default", bool(n["keepdim"]))
    assert isinstance(values_and_positions, tuple)
    return values_and_positions[1]


@lowers("aten.topk.default")
def top(lo: Lowering, n: Node) -> Values:
    """The k largest or smallest entries along an axis."""
    return _along(lo, n, n["k"], np.arange(n["k"]), not n["largest"], True)


@lowers("aten.sort.default", "aten.sort.stable")
def sorted_along(lo: Lowering, n: Node) -> Values:
    """All entries along an axis in order."""
    ids = lo.ids(n["self"])
    count = ids.shape[int(n["dim"])] if ids.ndim else 1
    return _along(lo, n, count, np.arange(count), not n["descending"], True)


@lowers("aten.kthvalue.default", "aten.median.dim")
def ranked(lo: Lowering, n: Node) -> Values:
    """The k-th smallest entry along an axis; the median is the lower of two."""
    ids = lo.ids(n["self"])
    count = ids.shape[int(n["dim"])] if ids.ndim else 1
    k = n["k"] - 1 if "k" in n.args else (count - 1) // 2
    return _along(lo, n, 1, np.array([k]), True, bool(n["keepdim"]))


@lowers("aten.scatter_reduce.two")
def reduced_at(lo: Lowering, n: Node) -> Values:
    """At each place the sum, mean, largest or smallest of what is written there."""
    index = lo.value(n["index"])
    if not isinstance(index, Const):
        raise Unsupported("the places that it writes to depend on values")
    base = lo.ids(n["self"])
    source = lo.ids(n["src"])[tuple(slice(0, s) for s in index.tensor.shape)]
    places = np.arange(base.size).reshape(base.shape)
    cut = tuple(slice(None) if d == n["dim"] % base.ndim else slice(0, s) for d, s in enumerate(index.tensor.shape))
    destination = np.take_along_axis(places[cut], index.tensor.numpy(), n["dim"])
    table = grouped(destination, source + 1, base.size) - 1  # 0 is a constant zero, −1 nothing
    counts = (table >= 0).sum(1, keepdims=True)
    base_entries = np.where(counts == 0, base.reshape(-1, 1), -1) if not n["include_self"] else base.reshape(-1, 1)
    table = np.concatenate([base_entries, table], 1).reshape(*base.shape, -1)
    if n["reduce"] in ("amax", "amin"):
        return Signal(lo.c.ids(select(lo, table, smallest=n["reduce"] == "amin")))
    if n["reduce"] not in ("sum", "mean"):
        raise Unsupported(f"reduction {n['reduce']}")
    used = table >= 0
    table = np.maximum(table, 0)
    if n["reduce"] == "sum":
        return Signal(lo.summed(table))
    return weighted(lo, table, table, used / np.maximum(used.sum(-1, keepdims=True), 1))


@lowers("aten.nonzero.default", "aten.masked_select.default")
def listed(lo: Lowering, n: Node) -> Values:
    """Refused: a circuit has as many units as it has."""
    raise Unsupported("how many results there are depends on values; weight all entries by a mask instead")
