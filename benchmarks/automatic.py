"""What training reaches where rate, steps and penalty are "auto": every algorithm on the digits, one seed.

python benchmarks/automatic.py [--networks NAME …] [--algorithms NAME …] [--epochs N]

Prints a table. Rates are chosen on the first batch and kept, while weights grow: the last column is in how many of the
trials that are due later inference left its bound.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # where the tasks have their loaders of data
from leaderboard_rows import BATCH, summed, train
from leaderboard_tasks import TASKS

import pccompile

AUTO: dict[str, Any] = {"rate": "auto", "steps": "auto"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "zil": {},
    "fixed-prediction": AUTO,
    "error-optimization": AUTO,
    "strict": AUTO,
    "nudged": AUTO,
    "incremental": AUTO,
    "langevin": {"rate": "auto", "temperature": 1e-4},
    "alm": {**AUTO, "penalty": "auto"},
}


def measured(network: str, algorithm: str, epochs: int) -> tuple[float, str, int]:
    """The test accuracy in the end, what was chosen, and how often inference left its bound."""
    torch.manual_seed(0)
    task = TASKS[network]
    model, data = task.build(), task.data(Path())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pc = pccompile.compile(
            model, (data[0][:BATCH],), algorithm=algorithm, loss=summed, check=False, **ALGORITHMS[algorithm]
        )
        accuracy, _ = train(model, pc, data, epochs, 0, math.inf)
    arguments = pc.compiled.program.arguments
    names = [k for k in ("rate", "steps", "penalty") if k in arguments and ALGORITHMS[algorithm].get(k) == "auto"]
    chosen = ", ".join(f"{k} {arguments[k]:.4g}" for k in names)
    return accuracy, chosen, sum("leaves its bound" in str(w.message) for w in told)


def main() -> None:
    """Print a table for each network."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--networks", nargs="+", default=["digits-mlp", "digits-cnn"], choices=TASKS)
    p.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    p.add_argument("--epochs", type=int, default=10)
    options = p.parse_args()
    torch.set_num_threads(1)
    for network in options.networks:
        print(f"{TASKS[network].title}, {options.epochs} epochs\n")
        print("| algorithm | chosen | test accuracy, % | left its bound |\n|---|---|---|---|")
        for algorithm in options.algorithms:
            accuracy, chosen, left = measured(network, algorithm, options.epochs)
            print(f"| `{algorithm}` | {chosen or '–'} | {100 * accuracy:.2f} | {left} |", flush=True)
        print()


if __name__ == "__main__":
    main()
