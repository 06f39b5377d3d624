"""What the adapters share: the problem, the gradients on disk, and rounds that are timed on demand.

An adapter is a script with one function `build(problem)`, which returns `step` and `arrays`: `step()` takes one
training gradient to its end, `arrays(step())` are the gradients as arrays, in the order and layout of the problem.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
Step = Callable[[], Any]
Arrays = Callable[[Any], Sequence[Any]]
WARM = 3


@dataclass(frozen=True)
class Problem:
    """A multilayer perceptron with ReLU, and what it is to learn.

    weights: of each layer, `[out, in]`. biases: `[out]`. x: `[batch, in]`. y: `[batch, out]`, the targets of
    ½ Σ (y − out)², summed over the batch. steps, rate: of inference on the values of all hidden layers, which begin at
    the forward pass, move all together, and predict each other by v̂ = relu(W v + b).
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    x: Array
    y: Array
    steps: int
    rate: float

    @classmethod
    def load(cls, path: str) -> Problem:
        """The problem in an .npz file."""
        with np.load(path) as file:
            layers = range(int(file["layers"]))
            weights, biases = (tuple(file[f"{kind}{i}"] for i in layers) for kind in ("weight", "bias"))
            return cls(weights, biases, file["x"], file["y"], int(file["steps"]), float(file["rate"]))

    def save(self, path: str) -> None:
        """Write an .npz file."""
        layers = {f"weight{i}": w for i, w in enumerate(self.weights)} | {
            f"bias{i}": b for i, b in enumerate(self.biases)
        }
        counts = {"layers": np.array(len(self.weights)), "steps": np.array(self.steps), "rate": np.array(self.rate)}
        np.savez(path, x=self.x, y=self.y, **layers, **counts)

    @property
    def parameters(self) -> list[Array]:
        """Weight and bias of each layer in turn."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair]


def serve(build: Callable[[Problem], tuple[Step, Arrays]]) -> None:
    """Write the gradients to the second argument; then for each line with a number take as many, and say the CPU time.

    The first argument is the path of the problem.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    step, arrays = build(Problem.load(sys.argv[1]))
    found = [np.asarray(a, np.float32) for a in arrays(step())]
    np.savez(sys.argv[2], *found)
    for _ in range(WARM):
        step()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            step()
        print(time.process_time() - start, file=answers, flush=True)
