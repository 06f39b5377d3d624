"""Operators of `com.microsoft` that onnxruntime's optimiser puts into files, but for attention.

They are those of onnxruntime's own list (docs/ContribOperators.md of its repository).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.convolution import conv
from pccompile.frontends.onnx.linear import gemm
from pccompile.frontends.onnx.registry import Node, operator

MICROSOFT = "com.microsoft"


@operator("Gelu", domain=MICROSOFT)
def gelu(node: Node, x: Tensor) -> Tensor:
    """The Gaussian error linear unit."""
    return F.gelu(x)


@operator("FastGelu", domain=MICROSOFT, weights=(1,))
def fast_gelu(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The Gaussian error linear unit by its tanh formula."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("BiasGelu", domain=MICROSOFT, weights=(1,))
def bias_gelu(node: Node, x: Tensor, bias: Tensor) -> Tensor:
    """The Gaussian error linear unit of x + bias."""
    return F.gelu(x + bias)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(node: Node, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(node.get("alpha", 1.702) * x)


@operator("SimplifiedLayerNormalization", weights=(1,))  # onnxruntime has it in the standard domain
def simplified_layer_normalization(node: Node, x: Tensor, scale: Tensor) -> Any:
    """x divided by its root mean square over the axes from `axis` on; the inverse of that where it is read."""
    axis = node.get("axis", -1)
    return by_root_mean_square(node, x, scale, axis + x.dim() if axis < 0 else axis)


def by_root_mean_square(node: Node, x: Tensor, scale: Tensor, axis: int) -> Any:
    """x divided by its root mean square, and the inverse of that where it is read."""
    result = F.rms_norm(x, list(x.shape[axis:]), None, node.get("epsilon", 1e-5)) * scale
    if not node.wants(1):
        return result
    mean = (x * x).mean(list(range(axis, x.dim())), keepdim=True)
    return result, torch.rsqrt(mean + node.get("epsilon", 1e-5))


@operator("SkipLayerNormalization", domain=MICROSOFT, weights=(2, 3, 4))
def skip_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Any:
    """The layer normalisation of x + skip + bias, and that sum where it is read."""
    total = x + skip if bias is None else x + skip + bias
    result = F.layer_norm(total, list(scale.shape), scale, shift, node.get("epsilon", 1e-12))
    return with_sum(node, result, total)


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT, weights=(2, 3))
def skip_simplified_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Any:
    """x + skip + bias divided by its root mean square, and that sum where it is read."""
    total = x + skip if bias is None else x + skip + bias
    result = F.rms_norm(total, list(scale.shape), scale, node.get("epsilon", 1e-5))
    return with_sum(node, result, total)


def with_sum(node: Node, result: Tensor, total: Tensor) -> Any:
    """A normalisation's outputs: the result and the sum; the statistics between them stay on other devices."""
    if node.wants(1) or node.wants(2):
        raise CompileError(f"the statistics of {node.op_type} are read, which onnxruntime yields in training only")
    return (result, None, None, total) if node.wants(3) else result


@operator("EmbedLayerNormalization", domain=MICROSOFT, weights=(2, 3, 4, 5, 6))
def embed_layer_normalization(
    node: Node,
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    places: Tensor,
    parts: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> Any:
    """The layer normalisation of word, position and segment embeddings, how much of each sample the mask keeps,
    and the sum of the embeddings where it is read."""  # fmt: skip
    here = torch.arange(ids.shape[1]) if positions is None else positions.to(torch.int64)
    total = F.embedding(ids.to(torch.int64), words) + F.embedding(here, places)
    if segments is not None and parts is not None:
        total = total + F.embedding(segments.to(torch.int64), parts)
    result = F.layer_norm(total, list(scale.shape), scale, shift, node.get("epsilon", 1e-12))
    kept = torch.zeros(ids.shape[0], dtype=torch.int32) if mask is None else mask.sum(1).to(torch.int32)
    return result, kept, total


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT, weights=(0, 1))
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """alpha A B, A and B transposed on request, also with their last batch axis in the matrix."""
    a = turned(a, node.get("transBatchA", 0), node.get("transA", 0))
    b = turned(b, node.get("transBatchB", 0), node.get("transB", 0))
    result = torch.matmul(a, b)
    return result if node.get("alpha", 1.0) == 1.0 else torch.mul(result, node.get("alpha"))


def turned(x: Tensor, batch: int, matrix: int) -> Tensor:
    """x with its first axis moved into the matrix, and the matrix transposed."""
    x = x.movedim(0, -2) if batch else x
    return x.transpose(-1, -2) if matrix and x.dim() > 1 else x


@operator("FusedGemm", domain=MICROSOFT, weights=(0, 1, 2))
def fused_gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """A Gemm and the activation behind it."""
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    numbers = [node.get(n) for n in names if n in node.attributes]
    return activated(node.get("activation", ""), numbers, gemm(node, a, b, c))


@operator("FusedConv", domain=MICROSOFT, weights=(1, 2))
def fused_conv(
    node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """A convolution, what is added to it, and the activation behind that."""
    y: Tensor = conv(node, x, weight, bias)
    y = y if residual is None else y + residual
    return activated(node.get("activation", ""), node.get("activation_params") or [], y)


def activated(name: str, numbers: Sequence[float], y: Tensor) -> Tensor:
    """y through the activation called `name`, with its parameters."""
    simple: dict[str, Any] = {
        "": lambda v: v,
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda v: F.leaky_relu(v, numbers[0] if numbers else 0.01),
        "Clip": lambda v: torch.clamp(v, *numbers[:2]),
        "HardSigmoid": lambda v: torch.clamp(numbers[0] * v + numbers[1], 0, 1),
        "Elu": lambda v: F.elu(v, numbers[0] if numbers else 1.0),
        "HardSwish": F.hardswish,
        "Softplus": F.softplus,
    }
    if name not in simple:
        raise CompileError(f"no fused activation called {name}")
    result: Tensor = simple[name](y)
    return result
