"""A small convolutional network learns scikit-learn's digits by predictive coding and by backpropagation, same seed.

python examples/digits.py [--epochs N] [--algorithm NAME] [--plot FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pccompile


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images `[1437, 1, 8, 8]` in 0…1 and labels, then the 360 for testing."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Module:
    """Two convolutions with batch norm, then two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.Tanh(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int) -> list[float]:
    """Test accuracy after each epoch of Adam in batches of 64."""
    x, y, x_test, y_test = data
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    shuffle = torch.Generator().manual_seed(1)
    curve = []
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x), generator=shuffle).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            curve.append((model(x_test).argmax(1) == y_test).float().mean().item())
    return curve


def main() -> None:
    """Train both ways, print the two curves side by side, and plot them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--algorithm", default="exact", choices=["exact", "fixed-prediction"])
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    data = digits()
    torch.manual_seed(0)
    backprop = network()
    torch.manual_seed(0)
    predictive = pccompile.compile(network(), (data[0][:64],), algorithm=options.algorithm)
    curves = {"backpropagation": train(backprop, data, options.epochs)}
    curves["predictive coding"] = train(predictive, data, options.epochs)
    print("epoch  " + "  ".join(curves))
    for epoch, row in enumerate(zip(*curves.values(), strict=True), 1):
        print(f"{epoch:5d}  " + "  ".join(f"{100 * v:{len(k)}.2f}" for k, v in zip(curves, row, strict=True)))
    if options.plot:
        plot(curves, options.plot)
        print(f"curves: {options.plot}")


def plot(curves: dict[str, list[float]], path: Path) -> None:
    """Both curves in one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(range(1, len(curve) + 1), [100 * v for v in curve], style, label=name)
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title="scikit-learn digits")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
