"""The networks that the benchmarks time: those of the test zoo, at sizes where a step takes milliseconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo import ZOO


@dataclass(frozen=True)
class Bench:
    """A network with its input, target and loss. `chain`: its vertices at layer granularity form a chain."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    target: Callable[[], Tensor]
    loss: Callable[..., Tensor] = F.cross_entropy
    chain: bool = False


def mlp() -> nn.Module:
    """784-256-256-10 with tanh."""
    return nn.Sequential(nn.Linear(784, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


class Residual(nn.Module):
    """A linear layer, tanh and a linear layer beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.a(x)))


def residual() -> nn.Module:
    """32 residual blocks, 128 wide."""
    return nn.Sequential(nn.Linear(64, 128), *(Residual(128) for _ in range(32)), nn.Linear(128, 10))


def _labels(count: int, classes: int = 10) -> Callable[[], Tensor]:
    return lambda: torch.randint(classes, (count,))


def _from_zoo(name: str) -> Bench:
    case, draw = ZOO[name], torch.Generator().manual_seed(0)
    return Bench(
        name, case.build, lambda: case.inputs(draw, torch.float32), lambda: case.target(draw, torch.float32), case.loss
    )


BENCHES = {
    "mlp": Bench("mlp", mlp, lambda: (torch.randn(32, 784),), _labels(32), chain=True),
    "mlp1": Bench("mlp, batch 1", mlp, lambda: (torch.randn(1, 784),), _labels(1), chain=True),
    "cnn": Bench("cnn", ZOO["paper_cnn"].build, lambda: (torch.randn(64, 3, 32, 32),), _labels(64), chain=True),
    "resnet18": Bench("resnet18", ZOO["resnet18"].build, lambda: (torch.randn(8, 3, 64, 64),), _labels(8)),
    "residual32": Bench("residual32", residual, lambda: (torch.randn(64, 64),), _labels(64)),
    "lstm": _from_zoo("unrolled_lstm_50"),
    "transformer": _from_zoo("encoder"),
}
