"""At automatic rates no random network diverges, on its first batch and while it learns.

All of them: pytest tests/analysis/test_random_networks.py (200 networks under every algorithm that measures a batch).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

BATCH, INPUTS, CLASSES = 4, 5, 3
LEARNING = 2
"""Optimizer steps of each network."""
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh,
    torch.relu,
    torch.sigmoid,
    F.gelu,
    F.silu,
    F.softplus,
    torch.sin,
    nn.Identity(),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "strict": {"rate": "auto", "steps": "auto"},
    "error-optimization": {"rate": "auto", "steps": "auto"},
    "incremental": {"rate": "auto", "steps": "auto"},
    "nudged": {"rate": "auto", "steps": "auto"},
    "langevin": {"rate": "auto", "steps": 10, "burn_in": 10, "temperature": 1e-3},
    "alm": {"rate": "auto", "penalty": "auto", "steps": 100},
}


class RandomNetwork(nn.Module):
    """Layers of random widths that read random earlier ones: sums and products of projections, and skips."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(seed)
        depth = self.below(1, 6)
        widths = [INPUTS, *(self.below(1, 12) for _ in range(depth))]
        scale = 10 ** float(torch.empty(()).uniform_(-0.7, 0.7, generator=self.draw))
        self.bends = [ACTIVATIONS[self.below(0, len(ACTIVATIONS))] for _ in range(depth)]
        self.reads = [[self.below(0, i + 1) for _ in range(self.below(1, 4))] for i in range(depth)]
        self.products = [self.below(0, 3) == 0 for _ in range(depth)]
        self.layers = nn.ModuleList(
            nn.ModuleList(self.linear(widths[r], widths[i + 1], scale) for r in reads)
            for i, reads in enumerate(self.reads)
        )
        self.skips = [widths[i] == widths[i + 1] and self.below(0, 2) == 0 for i in range(depth)]
        self.last = self.linear(widths[-1], CLASSES, scale)

    def below(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.draw))

    def linear(self, n: int, m: int, scale: float) -> nn.Linear:
        layer = nn.Linear(n, m)
        with torch.no_grad():
            layer.weight.normal_(std=scale / math.sqrt(n), generator=self.draw)
            layer.bias.normal_(std=0.1, generator=self.draw)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, (layers, reads) in enumerate(zip(self.layers, self.reads, strict=True)):
            parts = [layer(values[r]) for layer, r in zip(layers, reads, strict=True)]  # type: ignore[arg-type]
            whole = math.prod(parts[1:], start=parts[0]) if self.products[i] else sum(parts[1:], start=parts[0])
            bent = self.bends[i](whole)
            values.append(bent + values[-1] if self.skips[i] else bent)
        return self.last(values[-1])


def loss_of(seed: int) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[torch.Generator], Tensor]]:
    """A loss, and what draws targets for it."""
    if seed % 2:
        return lambda o, t: F.cross_entropy(o, t, reduction="sum"), lambda g: torch.randint(
            CLASSES, (BATCH,), generator=g
        )
    return lambda o, t: 0.5 * (o - t).square().sum(), lambda g: torch.randn(
        BATCH, CLASSES, generator=g, dtype=torch.float64
    )


def diverges(seed: int, algorithm: str) -> str:
    """Where a network diverges, if it does: no loss, gradient or parameter may be anything but a number.

    That errors come to more than the loss can explain is a warning, and raises where no rate was found that helps.
    """
    model = RandomNetwork(seed).double()
    loss, target = loss_of(seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    batches = [(torch.randn(BATCH, INPUTS, generator=draw, dtype=torch.float64), target(draw)) for _ in range(LEARNING)]
    pc = pccompile.compile(
        copy.deepcopy(model), batches[0][:1], algorithm=algorithm, loss=loss, check=False, **SETTINGS[algorithm]
    )
    optimizer = torch.optim.Adam(pc.parameters(), 1e-2)
    for i, (x, y) in enumerate(batches):
        if not pc.train_step(x, y, optimizer).isfinite():
            return f"the loss of batch {i} is no number"
        gone = [
            n
            for n, p in pc.named_parameters()
            if not p.isfinite().all() or (p.grad is not None and not p.grad.isfinite().all())
        ]
        if gone:
            return f"{gone[0]} is no number after batch {i}"
    return ""


@pytest.mark.parametrize("algorithm", SETTINGS)
@pytest.mark.parametrize("seed", [s if s < 1 else pytest.param(s, marks=pytest.mark.slow) for s in range(200)])
def test_no_random_network_diverges(algorithm: str, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(leaves its bound|diverges)")
        warnings.filterwarnings("ignore", message=".*leaves its bound.*chosen anew")
        assert not diverges(seed, algorithm)
