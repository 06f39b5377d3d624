"""Predictive coding asked the other way round: digits classified, generated, filled in and recalled.

python examples/roles.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pccompile

NORMAL, CODES = pccompile.energy("gaussian"), 12


class Classifier(nn.Module):
    """Image `[batch, 64]` to the scores of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.scores = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """The scores."""
        scores: Tensor = self.scores(torch.tanh(self.hidden(image)))
        return scores


class Decoder(nn.Module):
    """Code `[batch, codes]` to an image `[batch, 64]`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.image = nn.Linear(CODES, 64), nn.Linear(64, 64)

    def forward(self, code: Tensor) -> Tensor:
        """The image."""
        image: Tensor = self.image(torch.tanh(self.hidden(code)))
        return image


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[1437, 64]` around 0 and labels for training, then the 360 for testing."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return x[train], y[train], x[test], y[test]


def summed(scores: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch so that each sample infers alone."""
    return F.cross_entropy(scores, label, reduction="sum")


def classifier(x: Tensor, y: Tensor, seed: int) -> pccompile.PCModule:
    """A classifier that strict inference has taught."""
    torch.manual_seed(seed)
    pc = pccompile.compile(Classifier(), (x[:64],), algorithm="strict", loss=summed, steps=6, rate=0.2, check=False)
    optimizer = torch.optim.Adam(pc.parameters(), 3e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            pc.loss(x[batch], target=y[batch]).backward()
            optimizer.step()
    return pc


def squared(image: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of pixels with a variance of 1/10, summed."""
    return 5 * (image - target).square().sum()


def decoder(x: Tensor, epochs: int) -> pccompile.PCModule:
    """A generative network: the codes of its images are inferred, its weights learn at them."""
    torch.manual_seed(0)
    pc = pccompile.compile(
        Decoder(),
        (torch.zeros(64, CODES),),
        algorithm="strict",
        loss=squared,
        precision={"hidden": 10.0},
        steps=20,
        rate=0.01,
        check=False,
    )
    optimizer = torch.optim.Adam(pc.parameters(), 5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            pc.train_step(torch.zeros(len(batch), CODES), x[batch], optimizer, free={"code": NORMAL})
    return pc


def filled(pc: pccompile.PCModule, image: Tensor, known: Tensor) -> Tensor:
    """Images of which only the `known` pixels were looked at."""
    blank = torch.zeros(len(image), CODES)
    found = pc.settle(blank, target=(image, known), loss=masked, free={"code": NORMAL}, steps=300)
    return torch.where(known, image, found.outputs)


def masked(image: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of the known pixels."""
    return 5 * ((image - target[0]).square() * target[1]).sum()


def show(rows: list[Tensor]) -> None:
    """Images as text, side by side."""
    for images in rows:
        for line in range(8):
            pieces = (i[8 * line : 8 * line + 8].clip(-1, 1) for i in images)
            print("  ".join("".join(" .:*#"[int((p + 1) * 2.49)] * 2 for p in piece) for piece in pieces))


def main() -> None:
    """Do the four things, and say how well."""
    x, y, x_test, y_test = digits()
    first, second = classifier(x, y, seed=1), classifier(x, y, seed=2)
    accuracy = (first.settle(x_test).outputs.argmax(1) == y_test).float().mean()
    print(f"classification: {accuracy:.1%} of 360 unseen digits, image given and no target")

    wanted = torch.arange(10)
    grey = x.mean(0).expand(10, 64)
    made = first.settle(grey, target=wanted, free={"image": NORMAL}, steps=200, rate=0.05)["image"]
    agreed = (second(made).argmax(1) == wanted).float().mean()
    print(f"generation: a second classifier reads {agreed:.0%} of ten images as what the first was asked for")

    generative = decoder(x, epochs=12)
    known = torch.arange(64) < 32
    whole = filled(generative, x_test, known.expand(len(x_test), 64))
    error, blind = ((whole - x_test)[:, 32:].square().mean(), (x.mean(0) - x_test)[:, 32:].square().mean())
    print(f"infilling: squared error {error:.3f} in the lower half of unseen digits, {blind:.3f} for the mean image")
    show([x_test[:4], torch.where(known, x_test[:4], -1.0), whole[:4]])

    memory = x[:16]
    stored = decoder(memory, epochs=400)
    cue = torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    recalled = filled(stored, memory, cue)
    right = (torch.cdist(recalled, x[:200]).argmin(1) == torch.arange(16)).float().mean()
    print(f"associative recall: from 30% of its pixels, {right:.0%} of 16 stored digits is nearest to itself among 200")


if __name__ == "__main__":
    main()
