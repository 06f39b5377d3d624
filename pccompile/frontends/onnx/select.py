"""Operators that read or write at indices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, Value, as_tensor, normal_axis

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather", weights=(0,))
def gather(node: Node, data: Tensor, indices: Value) -> Tensor:
    """Slices of `data` along an axis; an embedding where they are rows of a matrix."""
    axis = normal_axis(node.get("axis", 0), data.dim())
    if isinstance(indices, Host) and not indices.symbolic and indices.array.ndim == 0:
        return data.select(axis, indices.item())
    if isinstance(indices, Host) and not indices.symbolic and not (indices.array < 0).any():
        index = as_tensor(indices).to(torch.int64)
    else:
        index = positive(as_tensor(indices), data.shape[axis])
    if axis == 0 and data.dim() == 2 and index.dim() > 0 and data.is_floating_point():
        return F.embedding(index, data)
    if index.dim() == 1:
        return data.index_select(axis, index)
    taken = data.index_select(axis, index.reshape(-1))
    return taken.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def positive(index: Tensor, size: int) -> Tensor:
    """`index` as int64 counted from the front."""
    index = index.to(torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("GatherElements")
def gather_elements(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    """The element that each index picks along an axis."""
    axis = normal_axis(node.get("axis", 0), data.dim())
    return torch.gather(data, axis, positive(indices, data.shape[axis]))


@operator("GatherND")
def gather_nd(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    """Slices of `data` at index tuples, after `batch_dims` shared axes."""
    shared = node.get("batch_dims", 0)
    depth = indices.shape[-1]
    picks = [positive(indices[..., i], data.shape[shared + i]) for i in range(depth)]
    grids = [
        torch.arange(data.shape[b]).reshape([-1 if i == b else 1 for i in range(indices.dim() - 1)])
        for b in range(shared)
    ]
    return data[tuple(grids + picks)]


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`data` with elements replaced by, or combined with, updates."""
    axis = normal_axis(node.get("axis", 0), data.dim())
    index = positive(indices, data.shape[axis])
    how = node.get("reduction", "none")
    if how == "none":
        return torch.scatter(data, axis, index, updates)
    if how == "add":
        return torch.scatter_add(data, axis, index, updates)
    return torch.scatter_reduce(data, axis, index, updates, REDUCTIONS[how])


@operator("ScatterND")
def scatter_nd(node: Node, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`data` with slices at index tuples replaced by, or combined with, updates."""
    depth = indices.shape[-1]
    picks = tuple(positive(indices[..., i], data.shape[i]) for i in range(depth))
    how = node.get("reduction", "none")
    if how in ("none", "add"):
        return torch.index_put(data, picks, updates, accumulate=how == "add")
    inner = list(data.shape[depth:])
    rows = data.reshape(-1, *inner)
    flat = picks[0]
    for pick, size in zip(picks[1:], data.shape[1:depth], strict=True):
        flat = flat * size + pick
    flat = flat.reshape(-1)
    return torch.index_reduce(rows, 0, flat, updates.reshape(-1, *inner), REDUCTIONS[how]).reshape(data.shape)


@operator("TensorScatter")
def tensor_scatter(node: Node, cache: Tensor, update: Tensor, start: Tensor | None = None) -> Tensor:
    """A cache with `update` written from `start` on, along an axis, per sample."""
    axis = normal_axis(node.get("axis", -2), cache.dim())
    steps = torch.arange(update.shape[axis])
    first = torch.zeros(cache.shape[0], dtype=torch.int64) if start is None else start
    place = first[:, None] + steps[None, :]
    if node.get("mode", "linear") == "circular":
        place = place % cache.shape[axis]
    shape = [1] * cache.dim()
    shape[0], shape[axis] = update.shape[0], update.shape[axis]
    return torch.scatter(cache, axis, place.reshape(shape).expand(update.shape), update)


@operator("OneHot")
def one_hot(node: Node, indices: Tensor, depth: Host, values: Tensor) -> Tensor:
    """A new axis with the on value at each index and the off value elsewhere."""
    size = int(depth.item())
    axis = node.get("axis", -1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    index = positive(indices, size).unsqueeze(axis)
    shape = [1] * index.dim()
    shape[axis] = size
    return torch.where(index == torch.arange(size).reshape(shape), values[1], values[0])


@operator("NonZero")
def non_zero(node: Node, x: Tensor) -> Tensor:
    """Where x is not zero, as `[rank, count]`; the count depends on the data."""
    return torch.nonzero(x).t()


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Host) -> Tensor:
    """Slices of x, or elements of flattened x, where the condition holds."""
    kept = torch.tensor([i for i, keep in enumerate(condition.tolist()) if keep], dtype=torch.int64)
    axis = node.get("axis")
    return x.reshape(-1).index_select(0, kept) if axis is None else x.index_select(axis, kept)


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """x read at fractional places."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    if mode == "bicubic" and x.dim() != 4:
        raise CompileError("GridSample with cubic interpolation in other than 2 dimensions", node.location)
    return F.grid_sample(x, grid, mode, node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0)))


@operator("AffineGrid")
def affine_grid(node: Node, theta: Tensor, size: Host) -> Tensor:
    """The places that an affine map reads from."""
    return F.affine_grid(theta, size.tolist(), bool(node.get("align_corners", 0)))


@operator("Unique")
def unique(node: Node, x: Tensor) -> tuple[Tensor, ...]:
    """Distinct elements or slices, first places, inverse and counts; their number depends on the data."""
    axis = node.get("axis")
    source = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis
    values, inverse, counts = torch.unique(source, sorted=True, return_inverse=True, return_counts=True, dim=along)
    first = torch.full((counts.shape[0],), source.shape[along], dtype=torch.int64)
    first = first.scatter_reduce(0, inverse, torch.arange(source.shape[along]), "amin")
    if node.get("sorted", 1):
        return values, first, inverse, counts
    order = torch.argsort(first)
    rank = torch.argsort(order)
    return values.index_select(along, order), first[order], rank[inverse], counts[order]
