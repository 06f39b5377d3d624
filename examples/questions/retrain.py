"""Can a trained network be retrained locally? One trained by backpropagation, whose pixels are then shuffled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pccompile


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return F.cross_entropy(output, target, reduction="sum")


def batches(x: Tensor, y: Tensor, epochs: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 64 in a fixed order."""
    shuffle = torch.Generator().manual_seed(1)
    order = [torch.randperm(len(x), generator=shuffle).split(64) for _ in range(epochs)]
    return [(x[b], y[b]) for epoch in order for b in epoch]


def main() -> None:
    """Accuracy before the change, after it, and after three epochs of each way of learning."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))

    def accuracy(of: Tensor) -> str:
        with torch.no_grad():
            return f"{100 * (model(of[1437:]).argmax(1) == y[1437:]).double().mean().item():.1f} %"

    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for a, b in batches(x[:1437], y[:1437], 12):
        optimizer.zero_grad()
        loss(model(a), b).backward()
        optimizer.step()
    print(f"trained by backpropagation            {accuracy(x)}")
    changed = x[:, torch.randperm(64, generator=torch.Generator().manual_seed(2))]
    print(f"its pixels shuffled                   {accuracy(changed)}")
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    runs: dict[pccompile.AlgorithmName, dict[str, Any]] = {
        "exact": {},
        "fixed-prediction": {"steps": 100, "rate": 0.1},
        "strict": {"steps": 20, "rate": 0.1},
        "incremental": {"steps": 5},
    }
    for name, settings in runs.items():
        model.load_state_dict(trained)
        pc = pccompile.compile(model, (x[:64],), algorithm=name, loss=loss, check=False, **settings)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for a, b in batches(changed[:1437], y[:1437], 3):
            pc.train_step(a, b, optimizer)
        print(f"retrained by {name:16} 3 epochs {accuracy(changed)}")


if __name__ == "__main__":
    main()
