"""A network learns scikit-learn's digits inside the simulator of its circuit; torch trains the same one by backprop.

python examples/netlist/learn_digits.py [--network NAME] [--bits 8 16] [--untied] [--epochs N]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pccompile.backends.netlist import Netlist, NetlistOptions
from pccompile.pipeline import compile_netlist

BATCH = 32
"""Presentations at a time, the replicas of a session."""

ETA = 2.0**-7
"""The step of gradient descent, for each presentation."""

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def network(name: str) -> nn.Module:
    """A perceptron 64-32-10, or two convolutions and a linear layer, with the same weights each time."""
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Tanh(),
        nn.Flatten(), nn.Linear(64, 10),
    ).double()  # fmt: skip


def digits() -> Data:
    """Training images `[1437, 1, 8, 8]` in 0…1 and labels, then the 360 for testing."""
    data = load_digits()
    x = torch.tensor(data.images).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return x[train], y[train], x[test], y[test]


def batches(data: Data, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in an order that is the same for both ways of training."""
    x, y, _, _ = data
    shuffle = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH):
            if len(batch) == BATCH:
                yield x[batch], y[batch]


def backpropagation(model: nn.Module, data: Data, epochs: int) -> float:
    """Test accuracy after gradient descent in torch."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    for x, y in batches(data, epochs):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y, reduction="sum").backward()
        optimizer.step()
    return float((model(data[2]).argmax(1) == data[3]).double().mean())


def circuit(model: nn.Module, untied: bool = False) -> Netlist:
    """The network as a circuit whose errors settle within 24 ticks."""
    options = NetlistOptions(loss="cross-entropy", rate=0.5, eta=ETA, ticks=24)
    net = compile_netlist(model, (torch.zeros(1, 1, 8, 8).double(),), options=options)
    return net.untie(init="random") if untied else net


def quantised(net: Netlist, data: Data, weights: int, states: int) -> Netlist:
    """The circuit in fixed point, with the ranges that it goes through while it learns for a few epochs."""
    seen = (net.presentation(x, y) for x, y in batches(data, 3))
    return net.quantise(weights, states, presentations=seen, learn=True, margin=2.0, headroom=2.0)


def learned(net: Netlist, data: Data, epochs: int) -> Netlist:
    """The circuit after its synapses have learned, presentation after presentation."""
    session = net.session(replicas=BATCH, rounding="stochastic")
    for x, y in batches(data, epochs):
        session.present(x, y)
        session.run(learn=True)
    return session.netlist()


def accuracy(net: Netlist, data: Data) -> float:
    """The share of test images whose most active output is the label's."""
    (output,) = net.simulate(data[2], ticks=1).outputs.values()
    return float(np.mean(output.reshape(len(data[3]), 10).argmax(1) == data[3].numpy()))


def main() -> None:
    """Train both ways and print the accuracies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--bits", nargs=2, type=int, metavar=("WEIGHTS", "STATES"), help="learn in fixed point")
    parser.add_argument("--untied", action="store_true", help="feedback with weights of its own")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    model, data = network(options.network), digits()
    print(f"backpropagation    {100 * backpropagation(model, data, options.epochs):.2f} %")
    net = circuit(model, options.untied)
    if options.bits:
        net = quantised(net, data, *options.bits)
    start = time.perf_counter()
    made = learned(net, data, options.epochs)
    print(f"inside the circuit {100 * accuracy(made, data):.2f} %, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
