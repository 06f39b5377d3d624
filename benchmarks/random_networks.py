"""Random networks that learn at automatic rates: whether inference diverges on any of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

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
AUTO: dict[str, Any] = {"rate": "auto", "steps": "auto"}
SETTINGS: dict[str, dict[str, Any]] = {
    "zil": {},
    "fixed-prediction": AUTO,
    "meta-pcn": AUTO,
    "error-optimization": AUTO,
    "strict": AUTO,
    "nudged": AUTO,
    "incremental": AUTO,
    "langevin": {**AUTO, "burn_in": 10, "temperature": 1e-3},
    "alm": {**AUTO, "penalty": "auto"},
}
"""Everything automatic that can be."""


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

    Warns where a rate leaves its bound, and says whether another was chosen. Raises CompileError where none is right.
    """
    model = RandomNetwork(seed).double()
    loss, target = loss_of(seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    batches = [(torch.randn(BATCH, INPUTS, generator=draw, dtype=torch.float64), target(draw)) for _ in range(LEARNING)]
    pc = pccompile.compile(model, batches[0][:1], algorithm=algorithm, loss=loss, check=False, **SETTINGS[algorithm])
    optimizer = torch.optim.Adam(pc.parameters(), 1e-2)
    for i, (x, y) in enumerate(batches):
        if not pc.train_step(x, y, optimizer).isfinite():
            return f"the loss of batch {i} is no number"
        if algorithm == "meta-pcn":
            pccompile.normalise_weights(model)
        for name, p in pc.named_parameters():
            if not p.isfinite().all() or (p.grad is not None and not p.grad.isfinite().all()):
                return f"{name} is no number after batch {i}"
    return ""


def outcome(seed: int, algorithm: str) -> tuple[str, bool]:
    """What went wrong on a network, nothing where all is well, and whether a rate was chosen anew on the way.

    Inference that leaves its bound counts as wrong where no other rate was chosen.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            wrong = diverges(seed, algorithm)
        except pccompile.CompileError as e:
            wrong = str(e)
    left = [line for w in told if "leaves its bound" in (line := str(w.message)) or "diverges" in line]
    helpless = [line for line in left if "chosen anew" not in line]
    return wrong or "; ".join(helpless), len(left) > len(helpless)


def survey(algorithm: str, networks: range) -> dict[str, Any]:
    """These networks under one algorithm: which diverged and how, on how many a rate was chosen anew, CPU."""
    start = time.process_time()
    outcomes = {seed: outcome(seed, algorithm) for seed in networks}
    return {
        "networks": len(networks),
        "diverged": {str(seed): wrong for seed, (wrong, _) in outcomes.items() if wrong},
        "anew": sum(anew for _, anew in outcomes.values()),
        "seconds": round(time.process_time() - start, 1),
    }


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two surveys of different networks as one."""
    sums = {k: round(one[k] + other[k], 1) for k in ("networks", "anew", "seconds")}
    return {**sums, "diverged": {**one["diverged"], **other["diverged"]}}
