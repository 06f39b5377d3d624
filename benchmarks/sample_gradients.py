"""The gradients of all samples in one run, against torch.func.vmap(grad): CPU time, medians of interleaved calls.

python benchmarks/sample_gradients.py [--batch 32] [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 256-256-256-10": (
        lambda: nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)),
        (256,),
    ),
    "convolutions 3-16-32-10": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        ),
        (3, 16, 16),
    ),
}


def by_func(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """What is compared with."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(dict(model.named_parameters()), x, y)


def by_calls(pc: Any, x: Tensor, y: Tensor) -> None:
    """A call for each sample."""
    for i in range(len(x)):
        pc.zero_grad()
        pc.loss(x[i : i + 1], target=y[i : i + 1]).backward()


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    how = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | torch.func | sample_gradients | ratio | a call for each sample | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model, x, y = build(), torch.randn(how.batch, *shape), torch.randint(10, (how.batch,))
        pc = pccompile.compile(model, (x,), loss=F.cross_entropy)
        runs: list[Callable[[], Any]] = [
            lambda model=model, x=x, y=y: by_func(model, x, y),
            lambda pc=pc, x=x, y=y: pc.sample_gradients(x, y),
            lambda pc=pc, x=x, y=y: by_calls(pc, x, y),
        ]
        times: list[list[float]] = [[] for _ in runs]
        for turn in range(how.repeats + 1):
            for run, found in zip(runs, times, strict=True):
                begin = time.process_time()
                run()
                found += [time.process_time() - begin] if turn else []
        func, own, calls = (1e3 * statistics.median(found) for found in times)
        print(f"| {name} | {func:.1f} ms | {own:.1f} ms | {own / func:.2f} | {calls:.1f} ms | {calls / func:.2f} |")


if __name__ == "__main__":
    main()
