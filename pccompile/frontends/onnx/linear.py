"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator


@operator("Gemm", weights=(0, 1, 2))
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha A B + beta C, A and B transposed on request."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.t() if node.get("transA", 0) else a
    if alpha == 1.0 and beta == 1.0 and node.get("transB", 0) and (c is None or c.dim() == 1):
        bias = c if c is None or c.shape[0] == b.shape[0] else c.expand(b.shape[0])
        return F.linear(a, b, bias)
    result = a @ (b.t() if node.get("transB", 0) else b)
    result = result if alpha == 1.0 else alpha * result
    if c is None or beta == 0.0:
        return result
    return torch.add(result, c if beta == 1.0 else beta * c)


@operator("MatMul", weights=(0, 1))
def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, batched over leading axes."""
    return torch.matmul(a, b)


@operator("Einsum", weights=(0, 1, 2))
def einsum(node: Node, *values: Tensor) -> Tensor:
    """The sum of products that the equation describes."""
    return torch.einsum(node.get("equation"), *values)


@operator("Det")
def determinant(node: Node, x: Tensor) -> Tensor:
    """The determinant of each matrix."""
    return torch.det(x)
