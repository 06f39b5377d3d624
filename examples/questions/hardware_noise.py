"""What of noisy, low-precision neurons? A circuit with few bits, late and lost messages, against backpropagation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.simulate.asynchronous import Asynchrony

TICKS = 300


def gradient(net: Netlist, x: Tensor, y: Tensor, **how: Any) -> Tensor:
    """What a learning tick changes of the first weight, for a step of size 1, summed over the presentations."""
    result = net.simulate(x[:, None], y[:, None], learn=True, seed=1, **how)
    return torch.from_numpy(net.tensors["0.weight"] - result.params["0.weight"])


def main() -> None:
    """A line a disturbance: the cosine to the gradient of autograd at the first weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    (true, *_) = torch.autograd.grad(0.5 * (model(x) - y).pow(2).sum(), list(model.parameters()))
    net = pccompile.compile(model, (x[:1],), backend="netlist", eta=1.0, rate=0.25, ticks=TICKS)

    def show(what: str, mine: Tensor) -> None:
        print(f"{what:52} {F.cosine_similarity(mine.flatten(), true.flatten(), 0).item():.4f}")

    print(f"{'disturbance':52} cosine")
    show("none", gradient(net, x, y))
    show("units act out of step, half of them in a tick", gradient(net, x, y, asynchronous=Asynchrony()))
    show("messages up to 8 ticks late", gradient(net, x, y, asynchronous=Asynchrony(delay=8)))
    show("30 % of messages lost", gradient(net, x, y, asynchronous=Asynchrony(loss=0.3)))
    show("rates of units spread by 50 %", gradient(net, x, y, asynchronous=Asynchrony(spread=0.5)))
    everything = Asynchrony(loss=0.3, delay=8, spread=0.5)
    show("all of these", gradient(net, x, y, asynchronous=everything))
    for weights, states in ((8, 16), (6, 12), (4, 12), (2, 12), (4, 8)):
        try:
            show(f"{weights}-bit weights, {states}-bit states", gradient(net, x, y, bits=(weights, states)))
        except pccompile.CompileError as e:
            print(f"{weights}-bit weights, {states}-bit states: refused: {e.problems[0].what}")


if __name__ == "__main__":
    main()
