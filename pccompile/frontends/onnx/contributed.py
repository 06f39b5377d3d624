"""Operators of `com.microsoft` that onnxruntime's optimiser puts into files."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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


@operator("SkipLayerNormalization", domain=MICROSOFT, weights=(2, 3, 4))
def skip_layer_normalization(
    node: Node, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Any:
    """The layer normalisation of x + skip + bias, and that sum where it is read."""
    total = x + skip if bias is None else x + skip + bias
    result = F.layer_norm(total, list(scale.shape), scale, shift, node.get("epsilon", 1e-12))
    return (result, result, result, total) if node.wants(3) else result


@operator("FusedConv", domain=MICROSOFT, weights=(1, 2))
def fused_conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution and the activation behind it."""
    from pccompile.frontends.onnx.convolution import conv

    y: Tensor = conv(node, x, weight, bias)
    name, numbers = node.get("activation", ""), node.get("activation_params") or []
    if name == "LeakyRelu":
        return F.leaky_relu(y, *numbers)
    if name == "Clip":
        return torch.clamp(y, *numbers)
    if name == "HardSigmoid":
        return torch.clamp(numbers[0] * y + numbers[1], 0, 1)
    simple: dict[str, Any] = {"": lambda v: v, "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid}
    result: Tensor = simple[name](y)
    return result
