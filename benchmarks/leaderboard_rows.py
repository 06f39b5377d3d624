"""A row of the leaderboard: what one algorithm costs and needs on one network, and what it reaches by training."""

from __future__ import annotations

import copy
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from leaderboard_tasks import Data, Task
from torch import Tensor, nn

import pccompile

BATCH = 64
RIVALS = 10
"""So many steps of backpropagation are timed beside each row."""


@dataclass(frozen=True)
class Entry:
    """An algorithm with the settings that it is run with; "backpropagation" is that of autograd."""

    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As the table shows it."""
        return ", ".join(f"{k} {v}" for k, v in self.settings.items()) or "none"


ENTRIES = (
    Entry("backpropagation"),
    Entry("exact"),
    Entry("zil"),
    Entry("fixed-prediction", {"steps": 20, "rate": 0.5}),
    Entry("meta-pcn", {"steps": 20, "rate": 0.5}),
    Entry("error-optimization", {"steps": 5, "rate": 0.1}),
    Entry("incremental", {"steps": 5, "rate": 0.1}),
    Entry("strict", {"steps": 20, "rate": 0.1}),
    Entry("langevin", {"steps": 10, "burn_in": 10, "rate": 0.05, "temperature": 1e-4}),
    Entry("nudged", {"steps": 20, "rate": 0.2, "nudge": 0.05}),
    Entry("alm", {"steps": 60, "rate": 0.1, "penalty": 2.0}),
)
"""The quickest first, so that a time limit leaves out the slowest."""


AUTOMATIC = {"transformer": ("strict", "langevin", "nudged")}
"""Algorithms by network that leave their bound at the rate of the others: there the rate is measured."""


def entries(network: str) -> tuple[Entry, ...]:
    """The rows of a network's table."""
    measured = AUTOMATIC.get(network, ())
    return tuple(replace(e, settings={**e.settings, "rate": "auto"}) if e.algorithm in measured else e for e in ENTRIES)


class OutOfTime(Exception):
    """The time limit came before a row was done."""


def summed(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy summed over the batch, so that each sample infers alone."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="sum")


def compiled(model: nn.Module, entry: Entry, x: Tensor) -> Any:
    """The model in predictive-coding form; None for backpropagation."""
    if entry.algorithm == "backpropagation":
        return None
    return pccompile.compile(model, (x,), algorithm=entry.algorithm, loss=summed, check=False, **entry.settings)


def needs(task: Task, entry: Entry, data: Data) -> dict[str, Any]:
    """What does not come of training: products and hops of a step, the regime q, closeness to backpropagation."""
    torch.manual_seed(0)
    model = task.build()
    x, y = data[0][:BATCH], data[1][:BATCH]
    pc = compiled(model, entry, x)
    if pc is None:
        return {"flops": 1.0, "cosines": [1.0, 1.0]}
    pc.loss(x, target=y)
    cost, found = pc.cost(x), pc.locality().as_dict()
    return {
        "flops": cost.own.flops / cost.backprop.flops,
        "hops": max(t["hops"] for t in found["turns"]),
        "local": found["local"],
        "transported": bool(found["transported"]),
        "q": regime(pc, entry, x, y),
        "cosines": list(closeness(model, entry, x, y)),
    }


def regime(pc: Any, entry: Entry, x: Tensor, y: Tensor) -> float | None:
    """q = rate · steps · λ_max of what inference descends, at the first batch; None where it descends nothing."""
    curvature = {"error-optimization": "λmax(S)"} | dict.fromkeys(
        ("strict", "incremental", "nudged", "langevin"), "λmax(H)"
    )
    if entry.algorithm not in curvature:
        return None
    spectrum = pc.analyse(x, target=y, kinds=("spectrum",)).spectrum
    if not spectrum.quantities:
        return None
    value = spectrum.quantities[curvature[entry.algorithm]].value
    largest = 1 + max(value, 0.0) if entry.algorithm == "error-optimization" else value
    rate = pc.prepare((x,), loss=pc.criterion, target=y).compiled.program.arguments["rate"]
    return float(rate * entry.settings["steps"] * largest)


def closeness(model: nn.Module, entry: Entry, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Cosines between the first gradient and backpropagation's, at the first and at the last weight."""
    plain = copy.deepcopy(model)
    summed(plain(x), y).backward()
    if entry.algorithm == "incremental":  # its gradients while parameters stand still: those of strict
        entry = Entry("strict", entry.settings)
    compiled(model, entry, x).loss(x, target=y).backward()
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True) if p.dim() > 1]
    model.zero_grad()
    first, last = (F.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in (pairs[0], pairs[-1]))
    return first, last


def trained(task: Task, entry: Entry, data: Data, seeds: int, deadline: float) -> dict[str, Any]:
    """Test accuracy in %, and ms of CPU of a step, also as a multiple of backpropagation's. Raises OutOfTime."""
    accuracies, times = [], []
    torch.manual_seed(0)
    model = task.build()
    pc = compiled(model, entry, data[0][:BATCH])
    rival = statistics.median(rivals(copy.deepcopy(model), data))
    for seed in range(seeds):
        torch.manual_seed(seed)
        model.load_state_dict(task.build().state_dict())
        accuracy, seconds = train(model, pc, data, task.epochs, seed, deadline)
        accuracies.append(accuracy)
        times.append(seconds)
    seconds = statistics.median(times)
    return {
        "seeds": seeds,
        "epochs": task.epochs,
        "accuracy": 100 * statistics.mean(accuracies),
        "error": 100 * statistics.stdev(accuracies) / seeds**0.5 if seeds > 1 else None,
        "milliseconds": round(1e3 * seconds, 2),
        "ratio": round(seconds / rival, 2),
        "commit": commit(),
    }


def rivals(model: nn.Module, data: Data) -> list[float]:
    """Seconds of CPU of some steps of backpropagation."""
    optimizer, step = torch.optim.Adam(model.parameters(), 1e-3), backprop_step(model)
    return [timed(step, data[0][:BATCH], data[1][:BATCH], optimizer) for _ in range(RIVALS)]


def backprop_step(model: nn.Module) -> Callable[..., None]:
    """A training step by autograd."""

    def step(x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        summed(model(x), y).backward()
        optimizer.step()

    return step


def timed(step: Callable[..., Any], *args: Any) -> float:
    """Seconds of CPU."""
    start = time.thread_time()
    step(*args)
    return time.thread_time() - start


def train(
    model: nn.Module, pc: Any, data: Data, epochs: int, seed: int, deadline: float, normalise: bool = True
) -> tuple[float, float]:
    """The test accuracy in the end, and the median seconds of CPU of a step. Adam, 1e-3. Raises OutOfTime.

    normalise: whether Meta-PCN has its weights normalised after each step.
    """
    x, y, x_test, y_test = data
    optimizer, times = torch.optim.Adam(model.parameters(), 1e-3), []
    step = backprop_step(model) if pc is None else pc.train_step
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH):
            if time.monotonic() > deadline:
                raise OutOfTime
            times.append(timed(step, x[batch], y[batch], optimizer))
            if normalise and pc is not None and pc.options.algorithm == "meta-pcn":
                pccompile.normalise_weights(model)
    with torch.no_grad():
        parts = zip(x_test.split(1000), y_test.split(1000), strict=True)
        hits = sum(int((model(a).argmax(-1) == b).sum()) for a, b in parts)
    return hits / y_test.numel(), statistics.median(times)


def example(task: Task, folder: Path) -> tuple[Tensor, Tensor, int]:
    """A batch and its labels, or random ones for large data, and how many batches an epoch has. Raises DataAbsent."""
    if task.like is None:
        x, y, *_ = task.data(folder)
        return x[:BATCH], y[:BATCH], math.ceil(len(x) / BATCH)
    size, shape = task.like
    return torch.rand(BATCH, *shape), torch.randint(10, (BATCH,)), math.ceil(size / BATCH)


def price(task: Task, entry: Entry, x: Tensor, y: Tensor, batches: int) -> dict[str, Any]:
    """What a row would cost: ms of CPU of a training step after the first one, and the steps of a seed."""
    torch.manual_seed(0)
    model = task.build()
    pc, batch = compiled(model, entry, x), (x, y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    step = backprop_step(model) if pc is None else pc.train_step
    timed(step, *batch, optimizer)
    seconds = timed(step, *batch, optimizer)
    return {
        "settings": entry.settings,
        "milliseconds": round(1e3 * seconds, 1),
        "steps": task.epochs * batches,
        "commit": commit(),
    }


def commit() -> str:
    """The commit of the checkout, or nothing outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, capture_output=True, text=True)
    return run.stdout.strip()
