"""Fused operations equal the compositions that define them; complex numbers go through torch's own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.harness import arguments, run
from torch import Tensor

from pccompile.ops import OPS


def _normalised(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, ...]:
    mean = x.mean(dims, keepdim=True)
    scale = ((x - mean).square().mean(dims, keepdim=True) + eps).rsqrt()
    return (x - mean) * scale, mean, scale


def _layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> tuple[Any, ...]:
    y, mean, scale = _normalised(x, (-1,), eps)
    return y * weight + bias, mean.detach(), scale.detach()


def _softmax(x: Tensor, dim: int, *_: Any) -> Tensor:
    powers = (x - x.detach().amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def _nll(x: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Any]:
    return -x.gather(1, target[:, None]).mean(), torch.tensor(float(len(x)), dtype=x.dtype)


COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "aten._softmax.default": _softmax,
    "aten._safe_softmax.default": _softmax,
    "aten._log_softmax.default": lambda x, dim, _: x - x.exp().sum(dim, keepdim=True).log(),
    "aten.native_layer_norm.default": _layer_norm,
    "aten.nll_loss_forward.default": _nll,
    "aten.avg_pool2d.default": lambda x, size, *_: (
        F.unfold(x.flatten(0, 1)[:, None], 2, stride=2).mean(1).reshape(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    ),
    "aten.matmul.default": lambda x, y: torch.einsum("ij,jk->ik", x, y),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_fused_equals_composed(name: str) -> None:
    ran = run(name, *arguments(OPS[name].samples[0]), COMPOSITIONS[name])
    torch.testing.assert_close(ran.results[0], ran.expected[0], rtol=1e-10, atol=1e-12)
    for argument, expected in ran.gradients.items():
        torch.testing.assert_close(ran.messages[argument], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["aten.mul.Tensor", "aten.abs.default", "aten.exp.default", "aten.mm.default"])
def test_complex(name: str) -> None:
    """A rule for real numbers is not used for complex ones."""
    args, kwargs = arguments(OPS[name].samples[0])
    ran = run(name, [torch.complex(a, a.flip(0)) for a in args], kwargs)
    for argument, expected in ran.gradients.items():
        torch.testing.assert_close(ran.messages[argument], expected)
