"""Convolutions and their transposes, in one to three dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, integers

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def padding(node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> list[tuple[Any, Any]]:
    """The border before and after each spatial axis, `auto_pad` worked out."""
    rank = len(kernel)
    mode = node.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = node.get("pads") or [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * rank
    pairs: list[tuple[Any, Any]] = []
    for size, width, step, spread in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // step) - 1) * step + (width - 1) * spread + 1 - size, 0)
        less = total // 2
        pairs.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return pairs


def bordered(x: Tensor, pads: list[tuple[Any, Any]], value: float = 0.0) -> tuple[Tensor, list[Any]]:
    """x padded where the border is asymmetric, and the symmetric padding that is left to do."""
    if all(before == after for before, after in pads):
        return x, [before for before, _ in pads]
    flat = [width for pair in reversed(pads) for width in pair]
    return F.pad(x, flat, value=value), [0] * len(pads)


def window(node: Node, weight: Tensor) -> list[int]:
    """The spatial sizes of a kernel. Raises CompileError where the node says others."""
    sizes = list(weight.shape[2:])
    said = node.get("kernel_shape") or sizes
    if list(said) != sizes:
        raise CompileError(f"kernel_shape {said} of {node.op_type} is not that of its weights, {sizes}", node.location)
    return sizes


@operator("Conv", weights=(1, 2))
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution, grouped, dilated and padded as asked."""
    rank = weight.dim() - 2
    if rank not in CONVOLUTIONS:
        raise CompileError(f"Conv in {rank} dimensions; torch has 1 to 3", node.location)
    stride = node.get("strides") or [1] * rank
    dilation = node.get("dilations") or [1] * rank
    x, pads = bordered(x, padding(node, x, window(node, weight), stride, dilation))
    return CONVOLUTIONS[rank](x, weight, bias, stride, pads, dilation, node.get("group", 1))


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The transpose of a convolution; borders are cut from the full result where they are asymmetric."""
    rank = weight.dim() - 2
    if rank not in TRANSPOSED:
        raise CompileError(f"ConvTranspose in {rank} dimensions; torch has 1 to 3", node.location)
    stride = node.get("strides") or [1] * rank
    dilation = node.get("dilations") or [1] * rank
    extra = node.get("output_padding") or [0] * rank
    pads = transposed_padding(node, x, window(node, weight), stride, dilation, extra)
    group = node.get("group", 1)
    symmetric = all(before == after >= 0 for before, after in pads)
    if symmetric and all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)):
        return TRANSPOSED[rank](x, weight, bias, stride, [p for p, _ in pads], extra, group, dilation)
    full = TRANSPOSED[rank](x, weight, None, stride, 0, 0, group, dilation)
    pairs = zip(reversed(pads), reversed(extra), strict=True)
    full = F.pad(full, [width for (before, after), more in pairs for width in (-before, more - after)])
    return full if bias is None else full + bias.reshape(-1, *[1] * rank)


def transposed_padding(
    node: Node, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int], extra: list[int]
) -> list[tuple[Any, Any]]:
    """What to cut before and after each spatial axis of the full transposed convolution."""
    rank = len(kernel)
    mode = node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID", ""):
        pads = node.get("pads") if mode != "VALID" else None
        pads = pads or [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    wanted = wanted[-rank:] if wanted else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    pairs: list[tuple[Any, Any]] = []
    for i in range(rank):
        total = stride[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dilation[i] + 1 - wanted[i]
        less = total // 2
        pairs.append((less, total - less) if mode == "SAME_UPPER" else (total - less, less))
    return pairs


@operator("Col2Im")
def col2im(node: Node, x: Tensor, image: Host, block: Host) -> Tensor:
    """Patches added back into an image."""
    size, kernel = integers(image), integers(block)
    rank = len(size)
    pads = node.get("pads") or [0] * 2 * rank
    dilation, stride = node.get("dilations") or [1] * rank, node.get("strides") or [1] * rank
    padded = [size[i] + pads[i] + pads[i + rank] for i in range(rank)]
    if rank == 2:
        result = F.fold(x, tuple(padded), tuple(kernel), tuple(dilation), 0, tuple(stride))
    else:
        result = added_patches(x, padded, kernel, dilation, stride)
    for i in range(rank):
        result = result.narrow(2 + i, pads[i], size[i])
    return result


def added_patches(x: Tensor, padded: list[int], kernel: list[int], dilation: list[int], stride: list[int]) -> Tensor:
    """Patches `[batch, channel · tap, place]` added into an image of any rank, where torch has but two."""
    flat = torch.zeros(1, 1, dtype=torch.int64)
    for extent, width, spread, step in zip(padded, kernel, dilation, stride, strict=True):
        count = (extent - spread * (width - 1) - 1) // step + 1
        index = (torch.arange(width) * spread)[:, None] + (torch.arange(count) * step)[None, :]
        flat = (flat[:, None, :, None] * extent + index[None, :, None, :]).flatten(2, 3).flatten(0, 1)
    patches = x.unflatten(1, (-1, flat.shape[0])).flatten(2)
    image = x.new_zeros(*patches.shape[:2], math.prod(padded))
    image = image.index_add(2, flat.reshape(-1), patches)
    return image.reshape(*image.shape[:2], *padded)


@operator("DeformConv", weights=(1, 3))
def deform_conv(
    node: Node, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A convolution whose taps are moved by `offset` and weighted by `mask`, in two dimensions."""
    if x.dim() != 4:
        raise CompileError("DeformConv in other than 2 dimensions", node.location)
    batch, channels, height, width = x.shape
    out_channels, (kernel_height, kernel_width) = weight.shape[0], window(node, weight)
    stride, dilation = node.get("strides") or [1, 1], node.get("dilations") or [1, 1]
    pads, groups, parts = node.get("pads") or [0] * 4, node.get("group", 1), node.get("offset_group", 1)
    rows, columns = offset.shape[2:]
    taps = kernel_height * kernel_width
    shifts = offset.reshape(batch, parts, taps, 2, rows, columns)
    tap_y = (torch.arange(kernel_height) * dilation[0]).repeat_interleave(kernel_width)
    tap_x = (torch.arange(kernel_width) * dilation[1]).repeat(kernel_height)
    y = shifts[:, :, :, 0] + tap_y[:, None, None] + (torch.arange(rows) * stride[0] - pads[0])[:, None]
    z = shifts[:, :, :, 1] + tap_x[:, None, None] + (torch.arange(columns) * stride[1] - pads[1])
    source = x.reshape(batch * parts, channels // parts, height, width)
    sampled = read_between(source, y.reshape(batch * parts, -1), z.reshape(batch * parts, -1))
    sampled = sampled.reshape(batch, parts, channels // parts, taps, rows, columns)
    if mask is not None:
        sampled = sampled * mask.reshape(batch, parts, 1, taps, rows, columns)
    sampled = sampled.reshape(batch, groups, channels // groups * taps, rows * columns)
    kernel = weight.reshape(groups, out_channels // groups, channels // groups * taps)
    result = torch.matmul(kernel, sampled).reshape(batch, out_channels, rows, columns)
    return result if bias is None else result + bias[:, None, None]


def read_between(image: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """`image[sample, channel, row, column]` interpolated at places `y`, `z`, both `[sample, place]`; 0 outside of it.

    Unlike grid_sample it takes places in pixels, so that a whole number reads a pixel exactly.
    """
    height, width = image.shape[2:]
    top, left = torch.floor(y), torch.floor(z)
    down, across = y - top, z - left
    flat = image.flatten(2)
    total = torch.zeros((), dtype=image.dtype)
    for row, column, weight in (
        (top, left, (1 - down) * (1 - across)),
        (top, left + 1, (1 - down) * across),
        (top + 1, left, down * (1 - across)),
        (top + 1, left + 1, down * across),
    ):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.clamp(row, 0, height - 1) * width + torch.clamp(column, 0, width - 1)
        pixels = torch.gather(flat, 2, index.to(torch.int64)[:, None, :].expand(-1, flat.shape[1], -1))
        total = total + pixels * (weight * inside)[:, None, :]
    return total
