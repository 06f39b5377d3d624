"""What is run: with `--small` in minutes on two cores, and with `--full` as the published code runs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One experiment's size.

    steps, rate: of fixed prediction. updates: of the weights, each on a batch. learning_rate: of gradient descent
    without momentum. clip: the largest element of a gradient that is applied. held_out: examples that are tested on.
    examples: images, names or characters for training; 0 means all. hidden, length: of recurrent networks.
    """

    seeds: int
    updates: int
    batch: int
    learning_rate: float
    clip: float
    steps: int
    rate: float
    examples: int = 0
    held_out: int = 0
    hidden: int = 0
    length: int = 0
    evaluations: int = 10

    @property
    def text(self) -> str:
        """As a table shows it."""
        return ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in asdict(self).items() if v)


# The published CNN moves values by 2 × 0.1 and weights by 2 × 2.5e-4 × clip(2 ∂L/∂W, ±50)/2 of the summed square:
# written with one factor each, that is a rate of 0.2 and a learning rate of 5e-4 with gradients clipped at 25.
FULL = {
    "cnn": Setting(5, 78000, 64, 5e-4, 25, 100, 0.2, 50000, 10000),
    "rnn": Setting(5, 150000, 1, 1e-4, 50, 100, 0.1, held_out=1000, hidden=256, length=30),
    "lstm": Setting(5, 10000, 64, 1e-5, 50, 200, 0.1, 1000000, 3200, hidden=1056, length=50),
}
SMALL = {
    "cnn": Setting(5, 780, 64, 5e-4, 25, 100, 0.2, 10000, 2000, evaluations=5),
    "rnn": Setting(5, 4000, 1, 1e-2, 50, 100, 0.1, held_out=500, hidden=128, length=12, evaluations=5),
    "lstm": Setting(5, 300, 32, 3e-3, 50, 200, 0.1, 100000, 640, hidden=96, length=10, evaluations=5),
}
SETTINGS: dict[str, dict[str, Setting]] = {"small": SMALL, "full": FULL}
SCALAR: dict[str, Any] = {
    "theta": 2.0,
    "v0": 5.0,
    "target": 1.0,
    "rates": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "steps": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 150, 220, 320, 500),
}
"""The scalar test as published: these numbers, these rates, 500 steps."""
