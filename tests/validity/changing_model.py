"""A model that reads everything that a model may read: attributes, globals, closures, objects."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HERE = sys.modules[__name__]
GAIN = 1.5
SHIFT = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
BACKWARD = {"gain": 1.0}


def helper(x: Tensor) -> Tensor:
    """Reads globals: a number and a tensor."""
    return x * GAIN + SHIFT


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is scaled by a module's attribute and by a global."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, err: Tensor) -> tuple[Tensor, None]:
        return -ctx.module.alpha * BACKWARD["gain"] * err, None


class Exponent:
    """A helper object that is no module."""

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x


def scaled_by(number: float) -> tuple[Callable[[Tensor], Tensor], Callable[[float], None]]:
    """A function with a number in a closure, and what sets the number."""

    def scale(x: Tensor) -> Tensor:
        return number * x

    def set_number(value: float) -> None:
        nonlocal number
        number = value

    return scale, set_number


CLOSURE, SET_CLOSURE = scaled_by(1.0)


class Net(nn.Module):
    """A small network that reads everything that a model may read."""

    offset = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.drop = nn.Linear(3, 5), nn.LeakyReLU(0.1), nn.Dropout(0.25)
        self.bn, self.fc2 = nn.BatchNorm1d(5), nn.Linear(5, 5)
        self.fc3 = nn.Linear(5, 5)
        self.fc3.weight = self.fc2.weight
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Tanh()])
        self.head = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.register_buffer("scale", torch.full((5,), 1.25))
        self.mask = torch.tensor([1.0, 0.5, 1.0, 0.25, 1.0], dtype=torch.float64)
        self.one = torch.tensor(1.0, dtype=torch.float64)
        self.tau, self.residual, self.power, self.alpha = 1.0, True, 2, 0.5
        self.config: dict[str, Any] = {"slope": 0.1, "nested": [1.0, {"shift": 0.0}]}
        self.settings = SimpleNamespace(temperature=1.0, names={"double"})
        self.exponent = Exponent()
        self.function: Callable[[Tensor], Tensor] = torch.tanh

    def mix(self, x: Tensor) -> Tensor:
        """A method besides forward."""
        return x + 0.25 * x.roll(1, -1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.act(self.fc1(x) / self.tau))
        h = self.bn(h) * self.scale * self.mask * self.one + self.offset
        h = Reversal.apply(self.fc3(torch.tanh(self.fc2(h))), self)
        h = helper(CLOSURE(h)) + (x.sum(-1, keepdim=True) if self.residual else 0)
        h = self.mix(self.function(h)) + self.config["slope"] * torch.sin(h) + self.config["nested"][1]["shift"]
        h = self.exponent(h) * self.settings.temperature * (2 if "double" in self.settings.names else 1)
        for layer in self.layers:
            h = layer(h)
        return self.head(h**self.power)
