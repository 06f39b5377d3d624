"""Normalisations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Value, as_tensor


@operator("BatchNormalization", weights=(1, 2), statistics=(3, 4))
def batch_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Value, variance: Value) -> Any:
    """x by channel, with the stored statistics, or the batch's own where the node asks for training."""
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    learning = bool(node.get("training_mode", 0)) or (node.opset < 14 and len(node.outputs) > 1)
    if not learning and (isinstance(mean, Tensor) or isinstance(variance, Tensor)):
        # torch's own has no derivative by the statistics, which are computed here
        shape = [-1, *[1] * (x.dim() - 2)]
        shift, spread, factor, offset = (as_tensor(v).reshape(shape) for v in (mean, variance, scale, bias))
        return torch.mul((x - shift) * torch.rsqrt(spread + epsilon), factor) + offset
    mean, variance = as_tensor(mean), as_tensor(variance)
    if not learning:
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)
    axes = [0, *range(2, x.dim())]
    batch_mean = x.mean(axes)
    batch_variance = x.var(axes, correction=0)
    normal = F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
    running_mean = mean * momentum + batch_mean * (1 - momentum)
    running_variance = variance * momentum + batch_variance * (1 - momentum)
    return normal, running_mean, running_variance


@operator("InstanceNormalization", weights=(1, 2))
def instance_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x by sample and channel."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


@operator("LayerNormalization", weights=(1, 2))
def layer_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """x over the axes from `axis` on; its mean and inverse deviation where they are read."""
    axis = node.get("axis", -1)
    axis = axis + x.dim() if axis < 0 else axis
    shape, epsilon = list(x.shape[axis:]), node.get("epsilon", 1e-5)
    plain = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if plain:
        result = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        result = F.layer_norm(x, shape, None, None, epsilon) * scale
        result = result if bias is None else result + bias
    if not (node.wants(1) or node.wants(2)):
        return result
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + epsilon)
    return result, mean, inverse


@operator("RMSNormalization", weights=(1,))
def rms_normalization(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    """x divided by its root mean square over the axes from `axis` on."""
    axis = node.get("axis", -1)
    axis = axis + x.dim() if axis < 0 else axis
    stash = node.element_type("stash_type")
    wide = x.to(stash) if x.dtype in (torch.float16, torch.bfloat16) else x
    normal = F.rms_norm(wide, list(x.shape[axis:]), None, node.get("epsilon", 1e-5))
    return normal.to(x.dtype) * scale


@operator("GroupNormalization", weights=(1, 2))
def group_normalization(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x by sample and group of channels; up to opset 20 scale and bias go by group."""
    groups = node.get("num_groups")
    if scale.shape[0] != x.shape[1]:
        scale = scale.repeat_interleave(x.shape[1] // groups)
        bias = bias.repeat_interleave(x.shape[1] // groups)
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@operator("LRN")
def local_response_normalization(node: Node, x: Tensor) -> Tensor:
    """x divided by a power of the squares of neighbouring channels."""
    size = node.get("size")
    alpha, beta, offset = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    if size % 2 == 1:
        return F.local_response_norm(x, size, alpha, beta, offset)
    # torch puts the longer half of an even window in front, ONNX behind
    squares = F.pad((x * x).movedim(1, -1), [(size - 1) // 2, size // 2])
    means = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1) / size
    return torch.div(x, (offset + alpha * means) ** beta)


@operator("LpNormalization")
def lp_normalization(node: Node, x: Tensor) -> Tensor:
    """x divided by its p-norm along an axis; zero stays zero."""
    axis, p = node.get("axis", -1), node.get("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, x: Tensor) -> Tensor:
    """x with mean 0 and variance 1 along axes."""
    axes = node.get("axes") or [0, 2, 3]
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
