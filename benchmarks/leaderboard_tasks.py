"""Networks and data sets of the leaderboard. Data that is no package's comes from a folder and may be absent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from paper.data import DataAbsent, cifar10, shakespeare
from sklearn.datasets import load_digits
from torch import Tensor, nn

Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and labels for training, then for testing."""


@dataclass(frozen=True)
class Task:
    """A network on a data set, and how many epochs it is trained for. data(folder) raises DataAbsent.

    like: how many training images there are and the shape of one, for data that is large or may be absent: on random
    numbers a step takes as long.
    """

    title: str
    build: Callable[[], nn.Module]
    data: Callable[[Path], Data]
    epochs: int
    like: tuple[int, tuple[int, int, int]] | None = None


class Residual(nn.Module):
    """`depth` blocks of one layer each around a stream of `width`."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for block in self.blocks:
            nn.init.normal_(block.weight, std=(width * depth) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = h + block(torch.tanh(h))
        return self.last(torch.tanh(h))


class Transformer(nn.Module):
    """Two blocks of attention and a perceptron over characters, each of which predicts the next one."""

    def __init__(self, characters: int, width: int, length: int, heads: int = 2) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.last = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.places
        for block in self.blocks:
            h = block(h)
        return self.last(h)


class Block(nn.Module):
    """A transformer block with the norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        batch, length, width = h.shape
        parts = self.mix(self.norms[0](h)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        h = h + self.join(mixed)
        return h + self.outer(F.gelu(self.inner(self.norms[1](h))))


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def vgg5(part: int) -> nn.Module:
    """Four convolutions, each with ReLU and a pool, and a linear layer; 1 / part of the width of VGG-5."""
    widths = [3, *(w // part for w in (128, 256, 512, 512))]
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Conv2d(n, m, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * widths[-1], 10))


def digits(_: Path) -> Data:
    """scikit-learn's 1,797 digits of 8 × 8: 1,437 for training, the others for testing."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1437]], y[order[:1437]], x[order[1437:]], y[order[1437:]]


def grey(name: str, folder: Path, n: int) -> Data:
    """n training images of `name`_train.npz and all of `name`_test.npz, arrays x and y, in 0…1; files may be sorted."""
    files = [folder / f"{name}_{part}.npz" for part in ("train", "test")]
    if absent := [f.name for f in files if not f.is_file()]:
        raise DataAbsent(f"no {' and no '.join(absent)} in {folder}")
    train, test = map(np.load, files)
    chosen = np.random.default_rng(0).permutation(len(train["y"]))[:n]
    parts = ((train["x"][chosen], train["y"][chosen]), (test["x"], test["y"]))
    (x, y), (a, b) = ((torch.tensor(u).float().div(255).unsqueeze(1), torch.tensor(v).long()) for u, v in parts)
    return x, y, a, b


def coloured(folder: Path, n: int, m: int) -> Data:
    """n training and m test images of CIFAR-10."""
    images = cifar10(folder, n, m)
    return images.x, images.y, images.x_test, images.y_test


def characters(folder: Path, windows: int, length: int = 32) -> Data:
    """Windows of Shakespeare and the same shifted by a character; a tenth more for testing, from behind them."""
    text = shakespeare(folder)
    known = sorted(set(text))
    held = windows // 10
    codes = torch.tensor([known.index(c) for c in text[: (windows + held) * length + 1]])
    x, y = codes[:-1].view(-1, length), codes[1:].view(-1, length)
    return x[:windows], y[:windows], x[windows:], y[windows:]


def residual(width: int, depth: int) -> Task:
    """A residual network on digits."""
    title = f"Digits, residual network, {depth} blocks of {width}"
    return Task(title, lambda: Residual(width, depth), digits, 15)


TASKS = {
    "digits-mlp": Task("Digits, MLP 64-32-10", lambda: mlp(64, 32, 10), digits, 20),
    "digits-cnn": Task("Digits, two convolutions of 8 and 16", cnn, digits, 15),
    "residual-8": residual(32, 8),
    "residual-32": residual(32, 32),
    "residual-128": residual(32, 128),
    "residual-32-narrow": residual(8, 32),
    "residual-32-wide": residual(128, 32),
    "mnist-mlp": Task(
        "MNIST, 10,000 of the training images, MLP 784-128-128-128-10",
        lambda: mlp(784, 128, 128, 128, 10),
        lambda folder: grey("mnist", folder, 10000),
        5,
    ),
    "vgg5-quarter": Task(
        "CIFAR-10 (as lossy JPEG; 2,000 images for training, 1,000 for testing), VGG-5 of a quarter of its width",
        lambda: vgg5(4),
        lambda folder: coloured(folder, 2000, 1000),
        4,
    ),
    "transformer": Task(
        "Shakespeare (25,600 characters for training), transformer of two blocks of 32, next character",
        lambda: Transformer(65, 32, 32),
        lambda folder: characters(folder, 800),
        10,
    ),
    "fashion-32": Task(
        "Fashion-MNIST, MLP of 32 hidden layers of 32, ReLU",
        lambda: mlp(784, *[32] * 32, 10, activation=nn.ReLU),
        lambda folder: grey("fashion", folder, 60000),
        5,
        like=(60000, (1, 28, 28)),
    ),
    "vgg5": Task(
        "CIFAR-10, VGG-5",
        lambda: vgg5(1),
        lambda folder: coloured(folder, 50000, 10000),
        25,
        like=(50000, (3, 32, 32)),
    ),
}
"""By name, the quickest first. The last two are the settings of published numbers and take days."""
