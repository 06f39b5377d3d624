"""Which values of an exported program are one memory, and what is said about memory made plain.

A value that is detached, or read where gradients are off, is the same memory as its source (`detached.py`). So is what
`as_strided` reads, which counts from where that memory starts, whatever lies between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pccompile.diagnostics import CompileError
from pccompile.frontends.detached import follow_detached
from pccompile.frontends.functional import sources_of, storage
from pccompile.ops.functions import overwritten
from pccompile.ops.trace import AS_STRIDED, own_strides

DIAGONAL, FILL = torch.ops.aten.diagonal.default, torch.ops.aten.fill_.Scalar
FILL_DIAGONAL, PERMUTE = torch.ops.aten.fill_diagonal_.default, torch.ops.aten.permute.default
NARROW = torch.ops.aten.narrow.default
SCATTER, WHERE = torch.ops.aten.as_strided_scatter.default, torch.ops.aten.where.self
ZEROS, ONES = torch.ops.aten.zeros_like.default, torch.ops.aten.ones_like.default


def settle_memory(graph: fx.Graph) -> None:
    """Make plain what a program says about memory. Raises CompileError where it cannot be said without strides."""
    follow_detached(graph)
    spell_diagonals(graph)
    spell_scatters(graph)
    count_from_start(graph)


def counts_from_memory(graph: fx.Graph) -> bool:
    """Whether a graph reads or writes places in an input that are counted from where the input's memory starts."""
    inputs = {storage(n) for n in graph.nodes if n.op == "placeholder"} - {None}
    return any(storage(n.args[0]) in inputs for n in graph.nodes if "as_strided" in str(n.target) and _is_placed(n))


def _is_placed(n: fx.Node) -> bool:
    """Whether an operator of strides is told an offset."""
    arguments = dict(zip((a.name for a in n.target._schema.arguments), n.args, strict=False)) | n.kwargs  # type: ignore[union-attr]
    return isinstance(n.args[0], fx.Node) and arguments.get("storage_offset") is not None


def spell_diagonals(graph: fx.Graph) -> None:
    """Write `fill_diagonal_` as a fill of diagonals, which are views that know of no strides."""
    for n in list(graph.nodes):
        if n.target is not FILL_DIAGONAL:
            continue
        source, number, *rest = n.args
        value = source.meta["val"]
        wrap = bool(rest and rest[0]) or bool(n.kwargs.get("wrap"))
        with graph.inserting_before(n):
            for part in _blocks(graph, source, value, wrap):
                diagonal = part
                for _ in range(value.dim() - 1):
                    diagonal = view(graph, n, DIAGONAL, diagonal)
                view(graph, n, FILL, diagonal, number)
        n.replace_all_uses_with(source)
        graph.erase_node(n)


def spell_scatters(graph: fx.Graph) -> None:
    """Give `as_strided_scatter`, where a model calls it itself, the derivative that torch has for it.

    Autograd sends an error to the entries that are written over, and to no others. What a model writes in place through
    strides becomes the same operator later, and is no concern of this.
    """
    for n in [n for n in graph.nodes if n.target is SCATTER]:
        try:
            whole, part, *place = own_strides(n)
        except NotImplementedError:
            continue  # it is refused where it is read
        with graph.inserting_after(n):
            value = graph.call_function(overwritten())
        value.meta = dict(n.meta)
        with graph.inserting_before(value):
            none, ones = view(graph, n, ZEROS, whole), view(graph, n, ONES, part)
            written = view(graph, n, torch.ops.aten.ne.Scalar, view(graph, n, SCATTER, none, ones, *place), 0)
            taught = view(graph, n, WHERE, written, whole, none)
            taught = view(graph, n, torch.ops.aten.add.Tensor, taught, view(graph, n, SCATTER, none, part, *place))
        n.replace_all_uses_with(value)
        value.args = (taught, n)


def _blocks(graph: fx.Graph, source: fx.Node, value: torch.Tensor, wrap: bool) -> list[fx.Node]:
    """The parts of a matrix whose main diagonals a fill runs along: one, or where it wraps around, one after another.

    Raises CompileError where their number is not known.
    """
    if not wrap or value.dim() != 2:
        return [source]
    rows, columns = value.shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise CompileError(
            "fill_diagonal_(wrap=True) on a tensor whose length is free",
            hint="fill the diagonals of its blocks of rows",
        )
    starts = range(0, rows, columns + 1)
    return [view(graph, source, NARROW, source, 0, s, min(columns, rows - s)) for s in starts]


def view(graph: fx.Graph, like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """Append a call at the place in the user's code where `like` stands."""
    n = graph.call_function(target, args)
    n.meta = {**like.meta, "val": target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))}
    return n


def count_from_start(graph: fx.Graph) -> None:
    """Let every `as_strided` read the value that its memory was made for, in the order in which that lies there."""
    first: dict[int, fx.Node] = {}
    for n in list(graph.nodes):
        base = first.setdefault(own, n) if (own := storage(n)) is not None else n
        if n.target is not AS_STRIDED or not _is_view(n.args[0], base):
            continue
        source, size, stride, *rest = n.args
        offset = rest[0] if rest else n.kwargs.get("storage_offset")
        if offset is None:
            offset = source.meta["val"].storage_offset()
        if not _within(source.meta["val"], size, stride, offset):
            continue
        value = base.meta["val"]
        if not value.is_contiguous():
            with graph.inserting_before(n):
                base = view(graph, n, PERMUTE, base, _order(value))
        n.args, n.kwargs = (base, size, stride, offset), {}


def _order(value: torch.Tensor) -> list[int]:
    """The dimensions of a tensor in the order of its memory, the outermost first."""
    return sorted(range(value.dim()), key=lambda d: (-value.stride()[d], -value.shape[d]))


MOST_PLACES = 1 << 20
"""Tensors of more entries must lie side by side in memory."""


def _within(value: torch.Tensor, size: Sequence[Any], stride: Sequence[Any], offset: Any) -> bool:
    """Whether entries that are read at strides are all entries of `value`: autograd sends no error to others."""
    if value.permute(_order(value)).is_contiguous():
        first = offset - value.storage_offset()
        last = first + sum((d - 1) * s for d, s in zip(size, stride, strict=True))
        return bool(first >= 0 and last < value.numel())
    numbers = (*size, *stride, offset, *value.shape, *value.stride(), value.storage_offset())
    if not all(isinstance(k, int) for k in numbers) or max(math.prod(size), value.numel()) > MOST_PLACES:
        return False
    read = _places(size, stride, offset)
    return bool(torch.isin(read, _places(value.shape, value.stride(), int(value.storage_offset()))).all())


def _places(size: Sequence[int], stride: Sequence[int], offset: int) -> torch.Tensor:
    """Where the entries of a tensor lie in its memory."""
    places = torch.tensor(offset)
    for length, step in zip(size, stride, strict=True):
        places = places[..., None] + torch.arange(length) * step
    return places


def _is_view(n: fx.Node, base: fx.Node) -> bool:
    """Whether `n` is `base` or a view of it of the same type, through which its gradient passes."""
    value, whole = n.meta["val"], base.meta["val"]
    if value.dtype is not whole.dtype or value.is_conj() or value.is_neg():
        return False
    while n is not base:
        sources = sources_of(n)
        if len(sources) != 1:
            return False
        (n,) = sources
    return True
