"""How does it scale in hardware? Circuits of perceptrons of several widths and depths, on a chip."""

from __future__ import annotations

import itertools

import torch
from torch import nn

import pccompile


def perceptron(width: int, depth: int) -> nn.Module:
    """64 inputs, `depth` hidden layers, 10 outputs."""
    sizes = [64] + [width] * depth + [10]
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    """A line a network: units, synapses, cores of Loihi 1, ticks for 1 % of error, messages a tick."""
    print("width  depth   units  synapses  parameters  cores  messages a tick  ticks for 1 %")
    for width, depth in ((32, 1), (64, 1), (128, 1), (256, 1), (32, 2), (32, 4), (32, 8), (32, 16)):
        torch.manual_seed(0)
        net = pccompile.compile(perceptron(width, depth), (torch.zeros(1, 64),), backend="netlist", ticks=64)
        found = net.resources("loihi1")
        assert found.placement is not None
        ticks = next(n for tolerance, n in found.ticks if tolerance == 1e-2)
        print(
            f"{width:5} {depth:6} {found.units:7,} {found.synapses:9,} {found.parameters:11,} "
            f"{len(found.placement.tiles):6} {found.messages:16,} {ticks!s:>14}"
        )


if __name__ == "__main__":
    main()
