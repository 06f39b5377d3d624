"""Linear operations that add up: reductions, average pooling, resampling, scatter-add; any other by its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.circuit import Ids, grouped
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import lowers, lowers_where
from pccompile.backends.netlist.lower.values import Choice, Const, Signal, Values
from pccompile.backends.netlist.lower.wiring import moved, written_once
from pccompile.ir import Node
from pccompile.ops import definition, overload

LARGEST = 2**24
"""The most entries of a matrix that is found by probing."""


def reduced(n: Node, rank: int) -> tuple[int, ...]:
    """The axes over which a reduction runs."""
    dims = n.args.get("dim")
    if dims is None or dims == () or rank == 0:
        return tuple(range(rank))
    return tuple(int(d) % rank for d in (dims if isinstance(dims, tuple) else (dims,)))


def axes(op: str) -> int:
    """On how many axes, the last ones, an operation works that does the same to each channel."""
    arguments: list[Any] = overload(op)._schema.arguments
    return next(int(a.N) for a in arguments if a.N)


def rows(ids: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """`ids` with the axes `dims` as one last axis."""
    kept = [i for i in range(ids.ndim) if i not in dims]
    return ids.transpose(*kept, *dims).reshape(*(ids.shape[i] for i in kept), -1)


@lowers("aten.sum.default", "aten.sum.dim_IntList", "aten.mean.default", "aten.mean.dim")
def added_up(lo: Lowering, n: Node) -> Values:
    """Units that add up, or average, what they read."""
    ids = lo.ids(n["self"])
    table = rows(ids, reduced(n, ids.ndim))
    gain = 1 / max(table.shape[-1], 1) if definition(n.op).averages else 1.0
    return Signal(lo.summed(table.reshape(*lo.shape(), -1), gain))


@lowers("aten.cumsum.default")
def accumulated(lo: Lowering, n: Node) -> Values:
    """Each unit adds up all entries up to its own."""
    ids = lo.ids(n["self"])
    if not ids.ndim:
        return Signal(ids)
    last = np.moveaxis(ids, n["dim"], -1)
    upto = np.tril(np.ones((last.shape[-1],) * 2, dtype=bool))
    table = np.where(upto, last[..., None, :], 0)
    return Signal(lo.summed(np.moveaxis(table, -2, n["dim"] % ids.ndim)))


@lowers_where(lambda op: op.family == "context" and op.form_only == "self")
def filled(lo: Lowering, n: Node) -> Values:
    """A constant of which only the shape is another tensor's."""
    return Const(lo.evaluated(n, {i: lo.example(i) for i in n.inputs}))


@lowers(
    "aten.avg_pool1d.default",
    "aten.avg_pool2d.default",
    "aten.avg_pool3d.default",
    "aten._adaptive_avg_pool2d.default",
    "aten._adaptive_avg_pool3d.default",
    "aten.upsample_nearest1d.default",
    "aten.upsample_nearest2d.default",
    "aten.upsample_nearest3d.default",
    "aten.upsample_linear1d.default",
    "aten.upsample_bilinear2d.default",
    "aten.upsample_bicubic2d.default",
    "aten.upsample_trilinear3d.default",
)
def resampled(lo: Lowering, n: Node) -> Values:
    """Every channel through the same small matrix, found by probing it with unit vectors."""
    rank, ids, shape = axes(n.op), lo.ids(n["self"]), lo.shape()
    inside = ids.shape[ids.ndim - rank :]
    size = math.prod(inside)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, 1, *inside)
    found = lo.evaluated(n, {n["self"]: basis}).reshape(size, -1).t().numpy()
    slots = max(1, int((found != 0).sum(1).max(initial=0)))
    order = np.argsort(found == 0, axis=1, kind="stable")[:, :slots]
    weights = np.take_along_axis(found, order, 1)
    flat = ids.reshape(-1, size)
    table = np.where(weights != 0, flat[:, order], 0).reshape(*shape, slots)
    used = weights[weights != 0]
    if used.size and np.ptp(used) == 0:
        return Signal(lo.summed(table, float(used[0])))
    return weighted(lo, ids, table, np.broadcast_to(weights, (flat.shape[0], *weights.shape)))


def weighted(lo: Lowering, ids: np.ndarray, table: np.ndarray, weights: np.ndarray) -> Signal:
    """Units that add up the last axis of `table`, each entry with its own weight."""
    name = lo.population("sum", table.shape[:-1], [ids])
    table, weights = table.reshape(-1, table.shape[-1]), weights.reshape(-1, table.shape[-1])
    for source in lo.c.sources(table):
        first, size = lo.c.first[source], lo.c.populations[source].size
        units, slots = np.nonzero((table >= first) & (table < first + size) & (weights != 0))
        lo.c.scatter(source, np.stack([units, table[units, slots] - first]), weights[units, slots], name)
    return Signal(lo.c.ids(name))


@lowers("aten.index_add.default", "aten.scatter_add.default")
def scattered(lo: Lowering, n: Node) -> Values:
    """Each unit adds up what is written to its place, and what was there."""
    source_name = "source" if n.op == "aten.index_add.default" else "src"
    index = lo.value(n["index"])
    if not isinstance(index, Const):
        raise Unsupported("the places that it writes to depend on values" + " of a choice" * isinstance(index, Choice))
    base, source = lo.ids(n["self"]), lo.ids(n[source_name])
    places = torch.arange(base.size).reshape(base.shape)
    if n.op == "aten.index_add.default":
        if n["alpha"] != 1:
            raise Unsupported("alpha is not 1")
        destination = places.index_select(n["dim"], index.tensor.reshape(-1))
    else:
        source = source[tuple(slice(0, s) for s in index.tensor.shape)]
        cut = [slice(None) if d == n["dim"] % base.ndim else slice(0, s) for d, s in enumerate(index.tensor.shape)]
        destination = places[tuple(cut)].gather(n["dim"], index.tensor)
    return Signal(_onto(lo, base, destination.numpy(), source))


def _onto(lo: Lowering, base: np.ndarray, destination: np.ndarray, source: np.ndarray) -> np.ndarray:
    table = grouped(destination, source, base.size)
    return lo.summed(np.concatenate([base.reshape(-1, 1), table], 1).reshape(*base.shape, -1))


@lowers("aten.index_put.default")
def put(lo: Lowering, n: Node) -> Values:
    """Entries overwritten at given places, which is wiring, or added to."""
    if not n["accumulate"]:
        found = moved(lo, n)
        assert isinstance(found, Signal)
        return Signal(written_once(lo.ids(n["values"]), found.ids))
    slices = tuple(slice(None) if i is None else lo.constant(i) for i in n["indices"])
    if any(s is None for s in slices):
        raise Unsupported("the places that it writes to depend on values")
    base, source = lo.ids(n["self"]), lo.ids(n["values"])
    places = torch.arange(base.size).reshape(base.shape)
    destination = places[slices]
    return Signal(_onto(lo, base, destination.numpy(), np.broadcast_to(source, destination.shape)))


@lowers("aten.im2col.default", "aten.col2im.default", "aten.fold.default", "aten.trace.default")
def probed(lo: Lowering, n: Node) -> Values:
    """Any linear operation of one tensor, by its matrix."""
    ids = lo.ids(n["self"])
    return by_matrix(lo, ids, lo.shape(), lambda unit: lo.evaluated(n, {n["self"]: unit}))


def by_matrix(
    lo: Lowering, ids: Ids, shape: tuple[int, ...], run: Callable[[Tensor], Tensor], largest: int = LARGEST
) -> Signal:
    """A linear function of a signal, found by probing it with unit vectors; entries that are rounding are left out."""
    if ids.size * math.prod(shape) > largest:
        raise Unsupported(f"its matrix would have {ids.size * math.prod(shape)} entries")
    columns = []
    for i in range(ids.size):
        unit = torch.zeros(ids.size, dtype=torch.float64)
        unit[i] = 1
        columns.append(run(unit.reshape(ids.shape)).reshape(-1))
    matrix = torch.stack(columns, 1).numpy()
    matrix = np.where(np.abs(matrix) < 1e-15 * np.abs(matrix).max(initial=0.0), 0, matrix)
    table = np.where(matrix != 0, ids.reshape(1, -1), 0).reshape(*shape, -1)
    return weighted(lo, ids, table, matrix)
