"""Reductions along axes, running sums, and what picks the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, normal_axes

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def product_along(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The product along several axes."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def in_type_of(function: Reduction) -> Reduction:
    """The reduction with integers kept in their type, where torch would widen them."""
    return lambda x, axes, keep: function(x, axes, keep).to(x.dtype)


def extremum(function: Callable[..., Tensor], empty_false: bool) -> Reduction:
    """amax or amin; an empty axis yields the identity of the extremum, as ONNX asks."""

    def along(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if not any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
            return function(x, axes, keep)
        shape = [1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes]
        return torch.full(shape, identity_of(x.dtype, empty_false), dtype=x.dtype)

    return along


def identity_of(dtype: torch.dtype, low: bool) -> Any:
    """The smallest value of a type, or the largest."""
    if dtype is torch.bool:
        return not low
    if dtype.is_floating_point:
        return float("-inf") if low else float("inf")
    return torch.iinfo(dtype).min if low else torch.iinfo(dtype).max


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": in_type_of(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMax": extremum(torch.amax, True),
    "ReduceMin": extremum(torch.amin, False),
    "ReduceProd": in_type_of(product_along),
    "ReduceL1": in_type_of(lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep)),
    "ReduceL2": in_type_of(lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep))),
    "ReduceLogSum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceSumSquare": in_type_of(lambda x, axes, keep: torch.sum(x * x, axes, keep)),
}


@operator(*REDUCTIONS)
def reduce(node: Node, x: Tensor, axes: Host | None = None) -> Tensor:
    """x reduced along axes: all of them by default, or none with `noop_with_empty_axes`."""
    chosen = axes.tolist() if axes is not None else node.get("axes")
    if not chosen and node.get("noop_with_empty_axes", 0):
        chosen = []
        return REDUCTIONS[node.op_type](x.unsqueeze(0), [0], False)
    return REDUCTIONS[node.op_type](x, normal_axes(chosen or None, x.dim()), bool(node.get("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extremum(node: Node, x: Tensor) -> Tensor:
    """The index of the largest or smallest element along an axis."""
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    find = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return find(x, axis, keepdim=keep)
    last: Tensor = x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return last


@operator("CumSum")
def cumulative_sum(node: Node, x: Tensor, axis: Host) -> Tensor:
    """Running sums, from either end, with or without the element itself."""
    along = axis.item()
    if node.get("reverse", 0):
        x = x.flip(along)
    result = torch.cumsum(x, along, dtype=x.dtype)
    if node.get("exclusive", 0):
        result = result - x
    return result.flip(along) if node.get("reverse", 0) else result


@operator("CumProd")
def cumulative_product(node: Node, x: Tensor, axis: Host) -> Tensor:
    """Running products, from either end, with or without the element itself."""
    along = axis.item()
    if node.get("reverse", 0):
        x = x.flip(along)
    if node.get("exclusive", 0):
        x = torch.cat([torch.ones_like(x.narrow(along, 0, 1)), x.narrow(along, 0, x.shape[along] - 1)], along)
    result = torch.cumprod(x, along, dtype=x.dtype)
    return result.flip(along) if node.get("reverse", 0) else result


@operator("TopK")
def top_k(node: Node, x: Tensor, k: Host | None = None) -> tuple[Tensor, Tensor]:
    """The k largest or smallest elements along an axis and where they were, the first of equal ones first."""
    count, axis = node.get("k") if k is None else k.item(), node.get("axis", -1)
    # torch.topk leaves open which of equal elements it takes
    values, indices = torch.sort(x, stable=True, dim=axis, descending=bool(node.get("largest", 1)))
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax along one axis; up to opset 12 along all axes from `axis` on."""
    if node.opset >= 13:
        return softmax_along(node.op_type, x, node.get("axis", -1))
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == x.dim() - 1 or all(isinstance(s, int) and s == 1 for s in x.shape[axis + 1 :]):
        return softmax_along(node.op_type, x, axis)
    return softmax_along(node.op_type, x.flatten(axis), axis).reshape(x.shape)


def softmax_along(kind: str, x: Tensor, axis: int) -> Tensor:
    """Softmax, its logarithm, or a one at the largest element."""
    if kind == "Softmax":
        return torch.softmax(x, axis)
    if kind == "LogSoftmax":
        return torch.log_softmax(x, axis)
    return torch.zeros_like(x).scatter(axis, torch.argmax(x, axis, keepdim=True), 1.0)
