"""Models written as one function, and how far their gradients are from autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pccompile
from helpers.models import distance, gradients, half_squares, seeded


def module(forward: Callable[..., Any], **layers: nn.Module) -> Callable[[], nn.Module]:
    """A model with these layers and this forward."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, copy.deepcopy(layer))

    Made.forward = forward
    return Made


def compare(make: Callable[[], nn.Module], x: Tensor, **how: Any) -> float:
    plain, pc = seeded(make), pccompile.compile(seeded(make), (x,), **how)
    return distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x))))


def linear(inputs: int = 4, outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def x64(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)
