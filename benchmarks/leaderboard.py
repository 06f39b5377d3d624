"""All inference algorithms on the same networks, data and seeds: accuracy, closeness to backpropagation, cost.

python benchmarks/leaderboard.py [--seeds N] [--networks NAME …] [--algorithms NAME …] [--mnist FOLDER] [--output FILE]

Without --output, docs/leaderboard.md. --mnist: a folder with mnist_train.npz and mnist_test.npz, arrays x and y.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pccompile
from pccompile.algorithms import ALGORITHMS

BATCH = 64
Data = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Entry:
    """An algorithm with the settings that it is run with."""

    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As the table shows it."""
        return ", ".join(f"{k} {v}" for k, v in self.settings.items()) or "none"


ENTRIES = (
    Entry("exact"),
    Entry("zil"),
    Entry("fixed-prediction", {"steps": 20, "rate": 0.5}),
    Entry("meta-pcn", {"steps": 20, "rate": 0.5}),
    Entry("alm", {"steps": 60, "rate": 0.1, "penalty": 2.0}),
    Entry("nudged", {"steps": 20, "rate": 0.2, "nudge": 0.05}),
    Entry("error-optimization", {"steps": 5, "rate": 0.1}),
    Entry("strict", {"steps": 20, "rate": 0.1}),
    Entry("incremental", {"steps": 5, "rate": 0.1}),
    Entry("langevin", {"steps": 10, "burn_in": 10, "rate": 0.05, "temperature": 1e-4}),
)


@dataclass(frozen=True)
class Task:
    """A network on a data set, and how many epochs it is trained for."""

    title: str
    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: int


class Residual(nn.Module):
    """`depth` blocks of one layer each around a stream of 32."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        for block in self.blocks:
            nn.init.normal_(block.weight, std=(32 * depth) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = h + block(torch.tanh(h))
        return self.last(torch.tanh(h))


def digits() -> Data:
    """scikit-learn's 1,797 digits of 8 × 8: 1,437 for training, the others for testing."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1437]], y[order[:1437]], x[order[1437:]], y[order[1437:]]


def mnist(folder: Path) -> Data:
    """The first 10,000 training images of MNIST and its 10,000 test images."""
    train, test = (np.load(folder / f"mnist_{part}.npz") for part in ("train", "test"))
    x, y = torch.tensor(train["x"][:10000]), torch.tensor(train["y"][:10000]).long()
    return (
        x.float().div(255).unsqueeze(1),
        y,
        torch.tensor(test["x"]).float().div(255).unsqueeze(1),
        torch.tensor(test["y"]).long(),
    )


def mlp(*sizes: int) -> nn.Module:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


TASKS = {
    "digits-mlp": Task("Digits, MLP 64-32-10", lambda: mlp(64, 32, 10), digits, 20),
    "digits-cnn": Task("Digits, two convolutions of 8 and 16", cnn, digits, 15),
    "residual-8": Task("Digits, residual network, 8 blocks of 32", lambda: Residual(8), digits, 15),
    "residual-32": Task("Digits, residual network, 32 blocks of 32", lambda: Residual(32), digits, 15),
}


def summed(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy summed over the batch, so that each sample infers alone."""
    return F.cross_entropy(output, target, reduction="sum")


@dataclass(frozen=True)
class Row:
    """What one entry reached: test accuracies, cosines to backpropagation at the first and last weight, ms a batch."""

    accuracies: list[float]
    cosines: tuple[float, float]
    milliseconds: float


def run(task: Task, entry: Entry | None, seeds: int) -> Row:
    """Train with each seed; None is backpropagation by autograd."""
    data, accuracies, times, cosines = task.data(), [], [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = task.build()
        pc = None
        if entry is not None:
            settings = dict(entry.settings)
            pc = pccompile.compile(
                model, (data[0][:BATCH],), algorithm=entry.algorithm, loss=summed, check=False, **settings
            )
            cosines.append(closeness(model, pc, entry, data))
        accuracy, seconds = train(model, pc, data, task.epochs, seed)
        accuracies.append(accuracy)
        times.append(seconds)
    first, last = (statistics.mean(c[i] for c in cosines) if cosines else 1.0 for i in (0, 1))
    return Row(accuracies, (first, last), 1e3 * statistics.median(times))


def train(model: nn.Module, pc: Any, data: Data, epochs: int, seed: int) -> tuple[float, float]:
    """The test accuracy in the end, and the median seconds of CPU of a training step. Adam, 1e-3."""
    x, y, x_test, y_test = data
    optimizer, times = torch.optim.Adam(model.parameters(), 1e-3), []
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH):
            start = time.thread_time()
            if pc is None:
                optimizer.zero_grad()
                summed(model(x[batch]), y[batch]).backward()
                optimizer.step()
            else:
                pc.train_step(x[batch], y[batch], optimizer)
                if pc.options.algorithm == "meta-pcn":
                    pccompile.normalise_weights(model)
            times.append(time.thread_time() - start)
    with torch.no_grad():
        return (model(x_test).argmax(1) == y_test).double().mean().item(), statistics.median(times)


def closeness(model: nn.Module, pc: Any, entry: Entry, data: Data) -> tuple[float, float]:
    """Cosines between the first gradient and backpropagation's, at the first and at the last weight."""
    x, y = data[0][:BATCH], data[1][:BATCH]
    plain = copy.deepcopy(model)
    summed(plain(x), y).backward()
    if ALGORITHMS[entry.algorithm].name == "incremental":  # its gradients while parameters stand still: those of strict
        how = {k: entry.settings[k] for k in ("steps", "rate")}
        pc = pccompile.compile(model, (x,), algorithm="strict", loss=summed, check=False, **how)
    pc.loss(x, target=y).backward()
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True) if p.dim() > 1]
    model.zero_grad()
    first, last = (F.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in (pairs[0], pairs[-1]))
    return first, last


def table(task: Task, entries: Sequence[Entry], seeds: int) -> str:
    """One task as a table in Markdown."""
    lines = [
        f"## {task.title}",
        "",
        f"{task.epochs} epochs, batches of {BATCH}, Adam at 1e-3, summed cross-entropy, {seeds} seeds.",
        "",
        "| algorithm | settings | test accuracy, % ± s.e. | cosine, first layer | cosine, last layer | time |",
        "|---|---|---|---|---|---|",
    ]
    base = run(task, None, seeds)
    for entry in (None, *entries):
        row = base if entry is None else run(task, entry, seeds)
        spread = statistics.stdev(row.accuracies) / seeds**0.5 if seeds > 1 else 0.0
        name, text = ("backpropagation (autograd)", "") if entry is None else (f"`{entry.algorithm}`", entry.text)
        accuracy = f"{100 * statistics.mean(row.accuracies):.2f} ± {100 * spread:.2f}"
        ratio = row.milliseconds / base.milliseconds
        cosines = " | ".join(f"{c:.4f}" for c in row.cosines)
        lines.append(f"| {name} | {text} | {accuracy} | {cosines} | {ratio:.1f} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


HEAD = """\
# Leaderboard

Every algorithm on the same networks, data, order of batches, optimizer and seeds: what it reaches, how close its first
gradient is to backpropagation's, and what a training step takes as a multiple of one by autograd (medians of CPU
time, one thread). Settings are one choice each, not tuned by network; `incremental` takes an optimizer step at each
inference step. Made by `make leaderboard`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--algorithms", nargs="*", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "leaderboard.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tasks = [TASKS[name] for name in options.networks]
    if options.mnist:
        title = "MNIST, the first 10,000 images, MLP 784-128-128-128-10"
        tasks.append(Task(title, lambda: mlp(784, 128, 128, 128, 10), lambda: mnist(options.mnist), 5))
    entries = [e for e in ENTRIES if e.algorithm in options.algorithms]
    text = "\n\n".join([HEAD.rstrip(), *(table(task, entries, options.seeds) for task in tasks)])
    options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
