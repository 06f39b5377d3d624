"""Operators that move elements about: reshaping, joining, cutting, padding, repeating."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import (
    DTYPES,
    Host,
    host_of,
    normal_axes,
    normal_axis,
    product,
    shape_of,
)
from pccompile.limits import spend


@operator("Shape")
def shape(node: Node, x: Tensor) -> Host:
    """The shape, or a part of it, on the host."""
    full = shape_of(x)
    return Host(full.array[node.get("start", 0) : node.get("end", x.dim())], full.dtype)


@operator("Size")
def size(node: Node, x: Tensor) -> Host:
    """The number of elements, on the host."""
    sizes = shape_of(x)
    return host_of(product(sizes.tolist()))


@operator("Reshape")
def reshape(node: Node, x: Tensor, target: Host | None = None) -> Tensor:
    """x with another shape; 0 keeps a size, −1 takes what is left."""
    sizes = list(node.get("shape")) if target is None else target.tolist()
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if isinstance(s, int) and s == 0 else s for i, s in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """x as a matrix, cut before `axis`."""
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1 and x.dim() > 1:
        return torch.flatten(x, 1)
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """x with permuted axes, reversed by default."""
    return x.permute(node.get("perm", tuple(range(x.dim()))[::-1]))


@operator("Squeeze")
def squeeze(node: Node, x: Tensor, axes: Host | None = None) -> Tensor:
    """x without axes of size one."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    return x.squeeze() if chosen is None else x.squeeze(tuple(normal_axes(chosen, x.dim())))


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Tensor, axes: Host | None = None) -> Tensor:
    """x with further axes of size one."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    for axis in sorted(normal_axes(chosen, x.dim() + len(chosen))):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *values: Tensor) -> Tensor:
    """The values one after the other along `axis`."""
    return values[0] if len(values) == 1 else torch.cat(values, node.get("axis", 1))


@operator("Split")
def split(node: Node, x: Tensor, sizes: Host | None = None) -> tuple[Tensor, ...]:
    """x in parts along `axis`: of the sizes given, or as many equal ones as there are outputs."""
    axis = normal_axis(node.get("axis", 0), x.dim())
    lengths = sizes.tolist() if sizes is not None else node.get("split")
    if lengths is not None:
        return torch.split(x, list(lengths), axis)
    count = node.get("num_outputs", len(node.outputs))
    if isinstance(x.shape[axis], int):
        spend("steps", min(count, x.shape[axis]), node.op_type)
    each = -(-x.shape[axis] // count)
    return torch.split(x, each, axis)


@operator("Slice")
def slice_(
    node: Node,
    x: Tensor,
    starts: Host | None = None,
    ends: Host | None = None,
    axes: Host | None = None,
    steps: Host | None = None,
) -> Tensor:
    """A part of x; limits beyond the ends are clamped and steps may be negative."""
    first = starts.tolist() if starts is not None else list(node.get("starts"))
    last = ends.tolist() if ends is not None else list(node.get("ends"))
    along = axes.tolist() if axes is not None else list(node.get("axes") or range(len(first)))
    strides = steps.tolist() if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, normal_axes(along, x.dim()), strides, strict=True):
        x = slice_axis(x, start, end, axis, step)
    return x


def slice_axis(x: Tensor, start: Any, end: Any, axis: int, step: Any) -> Tensor:
    """A part of x along one axis."""
    if step > 0:
        plain = isinstance(start, int) and isinstance(end, int)
        if plain and start == 0 and end >= 2**31 - 1 and step == 1:
            return x
        where = [slice(None)] * x.dim()
        # a symbolic size cannot hold the int64 limit that exporters write for "to the end"
        where[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
        return x[tuple(where)]
    length = x.shape[axis]
    if not isinstance(length, int):
        raise CompileError("Slice with a negative step along an axis of varying size")
    indices = range(*slice(start, None if end < -length else end, step).indices(length))
    spend("entries", len(indices), "Slice with a negative step")
    return x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64))


@operator("Expand")
def expand(node: Node, x: Tensor, sizes: Host) -> Tensor:
    """x repeated to the shape that it and `sizes` broadcast to."""
    wanted = sizes.tolist()
    own = [1] * (len(wanted) - x.dim()) + list(x.shape)
    wanted = [1] * (len(own) - len(wanted)) + wanted
    return x.expand([o if isinstance(w, int) and w == 1 else w for o, w in zip(own, wanted, strict=True)])


@operator("Tile")
def tile(node: Node, x: Tensor, repeats: Host) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(repeats.tolist())


@operator("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Host) -> Tensor:
    """One number in every place."""
    value = node.get("value")
    return torch.full(
        sizes.tolist(), 0.0 if value is None else value.item(), dtype=torch.float32 if value is None else value.dtype
    )


@operator("Range")
def range_(node: Node, start: Host, limit: Host, delta: Host) -> Tensor:
    """Evenly spaced numbers."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Pad")
def pad(node: Node, x: Tensor, pads: Host | None = None, value: Host | None = None, axes: Host | None = None) -> Tensor:
    """x with a border, constant or continued from its contents; negative widths cut."""
    widths = pads.tolist() if pads is not None else list(node.get("pads") or node.get("paddings"))
    along = normal_axes(axes.tolist() if axes is not None else None, x.dim())
    before, after = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(along):
        before[axis], after[axis] = widths[i], widths[i + len(along)]
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = value.item() if value is not None and value.array.size else node.get("value", 0.0)
        flat = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
        while len(flat) > 2 and flat[-1] == 0 and flat[-2] == 0:
            flat = flat[:-2]
        return F.pad(x, flat, value=fill)
    for axis in range(x.dim()):
        if before[axis] != 0 or after[axis] != 0:
            x = pad_axis(x, axis, before[axis], after[axis], mode)
    return x


def pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """x continued along one axis, by an index that the host computes."""
    length = int(x.shape[axis])
    positions = range(-before, length + after)
    spend("entries", max(before + length + after, 0), f"Pad of mode {mode}")
    if mode == "edge":
        index = [min(max(p, 0), length - 1) for p in positions]
    elif mode == "wrap":
        index = [p % length for p in positions]
    else:
        period = max(2 * (length - 1), 1)
        index = [min(p % period, period - p % period) if length > 1 else 0 for p in positions]
    return x.index_select(axis, torch.tensor(index, dtype=torch.int64))


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels unfolded into space."""
    block = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, block, block, channels // block**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Space folded into channels."""
    block = node.get("blocksize")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return x.permute(order).reshape(batch, channels * block**2, height // block, width // block)


@operator("Trilu")
def trilu(node: Node, x: Tensor, diagonal: Host | None = None) -> Tensor:
    """The upper or lower triangle."""
    offset = 0 if diagonal is None else diagonal.item()
    return torch.triu(x, offset) if node.get("upper", 1) else torch.tril(x, offset)


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    """Ones on a diagonal, in the shape of x."""
    rows, columns = x.shape
    dtype = DTYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    column, row = torch.arange(columns)[None, :], torch.arange(rows)[:, None]
    return torch.eq(column - row, node.get("k", 0)).to(dtype)


@operator("ReverseSequence")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    """x with the first `lengths` steps of each sample in reverse order."""
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    x = x.movedim((time, batch), (0, 1))
    steps = torch.arange(x.shape[0])[:, None]
    index = torch.where(steps < lengths[None, :], lengths[None, :] - 1 - steps, steps)
    index = index.reshape(index.shape + (1,) * (x.dim() - 2)).expand(x.shape)
    return x.gather(0, index).movedim((0, 1), (time, batch))
