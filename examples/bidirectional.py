"""One bidirectional network, taught once: it classifies digits, draws them for a label, and fills in what is hidden.

python examples/bidirectional.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from roles import digits
from torch import Tensor, nn

import pccompile

HALF = torch.arange(64) < 32
"""The upper half of an image."""


class Network(nn.Module):
    """Image `[batch, 64]` to ten numbers, 1 for its class and 0 for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.label = nn.Linear(64, 96), nn.Linear(96, 48), nn.Linear(48, 10)

    def forward(self, image: Tensor) -> Tensor:
        """The ten numbers."""
        label: Tensor = self.label(torch.tanh(self.second(torch.tanh(self.first(image)))))
        return label


def taught(x: Tensor, y: Tensor, epochs: int) -> pccompile.PCModule:
    """The network, its layers and their mirrors learning together."""
    torch.manual_seed(0)
    pc = pccompile.compile(Network(), (x[:64],), algorithm="bidirectional", steps=20, rate=0.1, check=False)
    optimizer = torch.optim.Adam(pc.parameters(), 2e-3)
    rows = F.one_hot(y, 10).float()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            pc.train_step(x[batch], rows[batch], optimizer)
    return pc


def main() -> None:
    """Ask it three ways."""
    x, y, x_test, y_test = digits()
    pc = taught(x, y, epochs=30)
    accuracy = (pc.settle(x_test).outputs.argmax(1) == y_test).float().mean()
    print(f"classification: {accuracy:.1%} of 360 unseen digits, the image given and the label free")

    wanted = torch.eye(10)
    made = pc.settle(x.mean(0).expand(10, 64), target=wanted, free="image", steps=300)["image"]
    nearest = y[torch.cdist(made, x).argmin(1)]
    agreed = (nearest == torch.arange(10)).float().mean()
    print(f"generation: {agreed:.0%} of ten images are nearest to a digit of the label that was given")

    mean = x.mean(0)
    cue = torch.where(HALF, x_test, mean)
    whole = pc.settle(cue, mask={"image": HALF.expand(len(x_test), 64)}, steps=300)["image"]
    error, blind = ((i - x_test)[:, 32:].square().mean() for i in (whole, mean))
    print(f"infilling: squared error {error:.3f} in the lower half of unseen digits, {blind:.3f} for the mean image")


if __name__ == "__main__":
    main()
