"""Is it not just slow backprop? Which gradients are those of backpropagation, and which are not, on one network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

RUNS: tuple[tuple[pccompile.AlgorithmName, dict[str, Any]], ...] = (
    ("exact", {}),
    ("fixed-prediction", {"steps": 100, "rate": 0.1}),
    ("zil", {}),
    ("nudged", {"steps": 400, "rate": 0.1, "nudge": 0.01}),
    ("alm", {"steps": 2000, "rate": 0.05, "penalty": 4.0}),
    ("strict", {"steps": 20, "rate": 0.1}),
    ("strict", {"steps": 400, "rate": 0.1}),
)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return F.cross_entropy(output, target, reduction="sum")


def main() -> None:
    """A line an algorithm: relative difference and cosine to autograd at the first weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 4, (8,))
    first = next(model.parameters())
    (true,) = torch.autograd.grad(loss(model(x), y), first)
    print("algorithm         settings                         relative difference   cosine")
    for name, settings in RUNS:
        pc = pccompile.compile(model, (x,), algorithm=name, loss=loss, check=False, **settings)
        (mine,) = torch.autograd.grad(pc.loss(x, target=y), first)
        cosine = F.cosine_similarity(mine.flatten(), true.flatten(), 0).item()
        gap = ((mine - true).norm() / true.norm()).item()
        text = ", ".join(f"{k} {v}" for k, v in settings.items())
        print(f"{name:17} {text:32} {f'{gap:.0e}' if gap > 1e-12 else '0':>18} {cosine:9.4f}")


if __name__ == "__main__":
    main()
