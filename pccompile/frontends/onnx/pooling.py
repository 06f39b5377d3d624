"""Pooling over windows and over everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.convolution import CONVOLUTIONS, padding
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host

AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMUM: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
UNPOOL: dict[int, Callable[..., Tensor]] = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}


def window(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[tuple[Any, Any]]]:
    """Kernel, stride, dilation and borders of a pooling."""
    kernel = list(node.get("kernel_shape"))
    rank = len(kernel)
    if rank not in MAXIMUM or x.dim() != rank + 2:
        raise CompileError(f"{node.op_type} of {x.dim()} dimensions with a window of {rank}", node.location)
    stride = list(node.get("strides") or [1] * rank)
    dilation = list(node.get("dilations") or [1] * rank)
    return kernel, stride, dilation, padding(node, x, kernel, stride, dilation)


def rounded_up(
    node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int], pads: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    """`pads`, with `ceil_mode` worked out as a wider border behind; a last window that starts in it is left out."""
    if not node.get("ceil_mode", 0):
        return pads
    wider: list[tuple[Any, Any]] = []
    for i, (before, after) in enumerate(pads):
        size = x.shape[2 + i]
        extent = dilation[i] * (kernel[i] - 1) + 1
        count = -(-(size + before + after - extent) // stride[i]) + 1
        if (count - 1) * stride[i] >= size + before:
            count = count - 1
        wider.append((before, max(after, (count - 1) * stride[i] + extent - size - before)))
    return wider


def symmetric_for_torch(pads: list[tuple[Any, Any]], kernel: list[int]) -> bool:
    """Whether torch's own padding can do `pads`: the same on both sides and at most half a window."""
    return all(before == after and 2 * before <= width for (before, after), width in zip(pads, kernel, strict=True))


def flat(pads: list[tuple[Any, Any]]) -> list[Any]:
    """Borders in the order that `F.pad` takes."""
    return [width for pair in reversed(pads) for width in pair]


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Any:
    """The largest element of each window, and its place in the flattened input where that is read."""
    kernel, stride, dilation, pads = window(node, x)
    rank = len(kernel)
    pads = rounded_up(node, x, kernel, stride, dilation, pads)
    dtype = x.dtype
    if not dtype.is_floating_point:
        x = x.to(torch.float64 if dtype in (torch.int32, torch.int64) else torch.float32)
    source, border = x, [p for p, _ in pads]
    if not symmetric_for_torch(pads, kernel):
        source, border = F.pad(x, flat(pads), value=float("-inf")), [0] * rank
    pooled = MAXIMUM[rank](source, kernel, stride, border, dilation, return_indices=node.wants(1))
    values, indices = pooled if node.wants(1) else (pooled, None)
    values = values if values.dtype is dtype else values.to(dtype)
    if indices is None:
        return values
    before = [p for p, _ in pads] if source is not x else [0] * rank
    return values, flattened_places(node, x, indices, source, before)


def flattened_places(node: Node, x: Tensor, indices: Tensor, source: Tensor, before: list[Any]) -> Tensor:
    """Indices within a padded channel as indices into the whole flattened input."""
    places: list[Tensor] = []
    for padded, margin in zip(reversed(source.shape[2:]), reversed(before), strict=True):
        places.insert(0, indices % padded - margin)
        indices = indices // padded
    sizes = list(x.shape[2:])
    if node.get("storage_order", 0):
        places, sizes = places[::-1], sizes[::-1]
    position = places[0]
    for place, size in zip(places[1:], sizes[1:], strict=True):
        position = position * size + place
    batch, channels = x.shape[:2]
    channel = torch.arange(batch * channels).reshape(batch, channels, *[1] * (x.dim() - 2))
    volume = x[0, 0].numel()
    return position + channel * volume


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean of each window, over the elements inside it or over its padding as well."""
    kernel, stride, dilation, pads = window(node, x)
    rank = len(kernel)
    wider = rounded_up(node, x, kernel, stride, dilation, pads)
    padded = bool(node.get("count_include_pad", 0))
    if all(d == 1 for d in dilation) and symmetric_for_torch(wider, kernel):
        return AVERAGE[rank](x, kernel, stride, [p for p, _ in wider], count_include_pad=padded)
    inside = torch.ones_like(x[:1, :1])
    if padded:
        inside = F.pad(inside, flat(pads), value=1.0)
        wider_inside = [(0, w[1] - p[1]) for w, p in zip(wider, pads, strict=True)]
    else:
        wider_inside = wider
    total = window_sum(F.pad(x, flat(wider)), kernel, stride, dilation)
    return total / window_sum(F.pad(inside, flat(wider_inside)), kernel, stride, dilation)


def window_sum(x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """The sum of each window, one channel at a time."""
    rank = len(kernel)
    if all(d == 1 for d in dilation):
        volume = 1
        for width in kernel:
            volume *= width
        return AVERAGE[rank](x, kernel, stride) * volume
    channels = x.shape[1]
    ones = torch.ones([channels, 1, *kernel], dtype=x.dtype)
    return CONVOLUTIONS[rank](x, ones, None, stride, 0, dilation, channels)


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    kernel, stride, dilation, pads = window(node, x)
    wider = rounded_up(node, x, kernel, stride, dilation, pads)
    p = node.get("p", 2)
    total = window_sum(F.pad(x.abs() ** p, flat(wider)), kernel, stride, dilation)
    return torch.pow(total, 1.0 / p)


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean over all spatial axes, which stay with size one."""
    return torch.mean(x, list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """The largest element over all spatial axes, which stay with size one."""
    return torch.amax(x, list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: Node, x: Tensor) -> Tensor:
    """The p-norm over all spatial axes, which stay with size one."""
    p = node.get("p", 2)
    return torch.pow(torch.sum(x.abs() ** p, list(range(2, x.dim())), keepdim=True), 1.0 / p)


@operator("MaxUnpool")
def max_unpool(node: Node, x: Tensor, indices: Tensor, output_shape: Host | None = None) -> Tensor:
    """Elements put back to where a max pooling took them from."""
    kernel = list(node.get("kernel_shape"))
    rank = len(kernel)
    stride = list(node.get("strides") or [1] * rank)
    pads = node.get("pads") or [0] * (2 * rank)
    natural = [(x.shape[2 + i] - 1) * stride[i] - pads[i] - pads[rank + i] + kernel[i] for i in range(rank)]
    volume = 1
    for size in natural:
        volume = volume * size
    batch, channels = x.shape[:2]
    empty = torch.zeros([batch * channels * volume], dtype=x.dtype)
    full = empty.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(batch, channels, *natural)
    if output_shape is None:
        return full
    wanted = output_shape.tolist()[2:]
    pairs = zip(reversed(wanted), reversed(natural), strict=True)
    return F.pad(full, [width for size, now in pairs for width in (0, size - now)])
