"""The networks on which algorithms are held to their equalities: a chain, products, three layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

Gradients = dict[str, Tensor]


class Gated(nn.Module):
    """A product, a skip connection and fan-out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.o(torch.tanh(self.c(h * torch.sigmoid(self.b(h)))) + h)


class RandomDAG(nn.Module):
    """Vertices that read up to three earlier ones, by sums and products, each with a weight of its own."""

    def __init__(self, vertices: int = 7, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(vertices))
        self.reads = [
            [
                int(torch.randint(i + 1, (1,), generator=draw))
                for _ in range(1 + int(torch.randint(3, (1,), generator=draw)))
            ]
            for i in range(vertices)
        ]
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            first, *others = (values[r] for r in reads)
            for i, other in enumerate(others):
                first = first * other if i % 2 else first + other
            values.append(torch.tanh(layer(first)))
        return self.out(values[-1] + values[1])


class ResidualCNN(nn.Module):
    """Two convolutions with batch norm around a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.n1, self.n2, self.out = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.n1(self.first(x)))
        return self.out((h + self.n2(self.second(h))).mean((2, 3)))


class Cell(nn.Module):
    """Three steps of an LSTM cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.out(state[0])


class Block(nn.Module):
    """A transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(1))


def chain() -> nn.Module:
    """Three layers and no branch."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def linear() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((5, 4), (4, 4), (4, 3))))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (4, 5)),
    "gated": (Gated, (4, 5)),
    "dag": (RandomDAG, (4, 5)),
    "cnn": (ResidualCNN, (4, 2, 5, 5)),
    "lstm": (Cell, (4, 3, 3)),
    "transformer": (Block, (4, 3, 8)),
}
DEEP = ("cnn", "lstm", "transformer")
"""Networks whose inference takes thousands of steps until it has ended."""
LARGE = [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in NETS]
"""All networks; what takes long to capture again and again is in the long suite."""


def squared(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed."""
    return 0.5 * (output - target).square().sum()


class Problem:
    """A network in float64 with one batch: what each algorithm makes of it."""

    def __init__(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0, loss: Any = squared
    ) -> None:
        torch.manual_seed(seed)
        self.model, self.loss = make().double(), loss
        self.x = torch.randn(shape, dtype=torch.float64)
        self.target = torch.randn(shape[0], 3, dtype=torch.float64)
        if loss is F.cross_entropy:
            self.target = self.target.argmax(1)
        self.backprop = self.autograd()

    def autograd(self) -> Gradients:
        """The gradients of backpropagation, by eager torch."""
        model = copy.deepcopy(self.model)
        self.loss(model(self.x), self.target).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    def compile(self, algorithm: str, **settings: Any) -> pccompile.PCModule:
        """A copy of the network under an algorithm."""
        return pccompile.compile(
            copy.deepcopy(self.model), (self.x,), algorithm=algorithm, loss=self.loss, check=False, **settings
        )

    def gradients(self, algorithm: str, **settings: Any) -> Gradients:
        """What an algorithm gives."""
        pc = self.compile(algorithm, **settings)
        pc.loss(self.x, target=self.target).backward()
        return {n: p.grad for n, p in pc.named_parameters() if p.grad is not None}


def problem(name: str, seed: int = 0, loss: Any = squared) -> Problem:
    """One of NETS with a batch."""
    return Problem(*NETS[name], seed=seed, loss=loss)


def apart(found: Gradients, expected: Gradients) -> float:
    """The largest relative difference of a parameter's gradient, of norms above rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(g.norm()) for g in expected.values())
    return max(float((found[k] - g).norm()) / max(float(g.norm()), 1e-5 * largest) for k, g in expected.items())


def gap(found: Gradients, expected: Gradients) -> float:
    """The largest difference of two entries."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - g).abs().max()) for k, g in expected.items())
