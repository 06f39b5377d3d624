"""Random draws. The seeds of the file are not honoured: torch's generators draw other numbers from them anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import DTYPES


def scaled(node: Node, draw: Tensor) -> Tensor:
    """A standard draw moved to what the node asks for."""
    if "Uniform" in node.op_type:
        low, high = node.get("low", 0.0), node.get("high", 1.0)
        return torch.add(draw * (high - low), low)
    return torch.add(draw * node.get("scale", 1.0), node.get("mean", 0.0))


@operator("RandomNormal", "RandomUniform")
def random(node: Node) -> Tensor:
    """A draw of a given shape."""
    dtype = node.element_type("dtype")
    draw = torch.rand if "Uniform" in node.op_type else torch.randn
    return scaled(node, draw(node.get("shape"), dtype=dtype))


@operator("RandomNormalLike", "RandomUniformLike")
def random_like(node: Node, x: Tensor) -> Tensor:
    """A draw of the shape of x."""
    dtype = DTYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    draw = torch.rand_like if "Uniform" in node.op_type else torch.randn_like
    return scaled(node, draw(x, dtype=dtype))


@operator("Bernoulli")
def bernoulli(node: Node, x: Tensor) -> Tensor:
    """Ones with the probabilities x."""
    dtype = DTYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    return torch.bernoulli(x).to(dtype)


@operator("Multinomial")
def multinomial(node: Node, x: Tensor) -> Tensor:
    """Indices drawn with the log-probabilities x."""
    drawn = torch.multinomial(torch.softmax(x, -1), node.get("sample_size", 1), replacement=True)
    return drawn.to(DTYPES[node.get("dtype", 6)])
