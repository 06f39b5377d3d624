"""Is it local? How far news travels in a step, by algorithm and depth."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

SETTINGS: dict[pccompile.AlgorithmName, dict[str, Any]] = {
    "fixed-prediction": {"lowering": "relax"},
    "strict": {},
    "alm": {},
    "nudged": {},
    "error-optimization": {},
}


def chain(depth: int) -> nn.Module:
    """A perceptron with `depth` hidden layers of 8."""
    sizes = [4] + [8] * depth + [3]
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return F.cross_entropy(output, target, reduction="sum")


def main() -> None:
    """A line an algorithm, then all that one of them needs of a substrate."""
    x = torch.zeros(2, 4)
    print("algorithm            hops in a step at depth 2, 8   local in space")
    for name, settings in SETTINGS.items():
        found = []
        for depth in (2, 8):
            pc = pccompile.compile(chain(depth), (x,), algorithm=name, loss=loss, check=False, **settings)
            found.append(pc.locality().as_dict())
        hops = [max(t["hops"] for t in f["turns"]) for f in found]
        print(f"{name:20} {hops[0]:2} {hops[1]:3} {'yes' if found[-1]['local'] else 'no':>34}")
    print()
    print(pccompile.compile(chain(2), (x,), algorithm="strict", loss=loss, check=False).locality())


if __name__ == "__main__":
    main()
