"""Models over packed sequences, and how a compiled one is compared with eager torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pccompile

X = torch.linspace(-3, 3, 60, dtype=torch.float64).view(4, 5, 3).sin()
N = torch.tensor([2, 5, 3, 1])
LENGTHS = (N, torch.tensor([4, 4, 1, 1]), torch.tensor([1, 1, 1, 1]), torch.tensor([5, 5, 5, 5]))


def pack(x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def falling(x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True)


def padded(packed: PackedSequence, **how: Any) -> Tensor:
    return pad_packed_sequence(packed, batch_first=True, **how)[0]


def step(run: Any, model: nn.Module, x: Tensor, *more: Any) -> dict[str, Any]:
    """What `run` returns, and the gradients of the parameters of `model` and of `x`."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    results = run(x, *more)
    results = results if isinstance(results, tuple) else (results,)
    sum((i + 1) * (r + 0.1).square().sum() for i, r in enumerate(results)).backward()  # type: ignore[union-attr]
    return {k: p.grad for k, p in model.named_parameters()} | {"x": x.grad, "results": results}


def check(model: nn.Module, x: Tensor = X, lengths: tuple[Any, ...] = LENGTHS, **how: Any) -> Any:
    """Compile the model at the first lengths; there and at all others it is what eager torch is."""
    eager = copy.deepcopy(model)
    pc = pccompile.compile(model, (x, lengths[0]), **how)
    for n in lengths:
        torch.testing.assert_close(step(pc, model, x, n), step(eager, eager, x, n), rtol=1e-9, atol=1e-12)
    return pc


class Layers(nn.Module):
    """An LSTM and a GRU, and what a test does with them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.a, self.b = nn.LSTM(3, 3, batch_first=True), nn.GRU(3, 3, batch_first=True)
        self.h = nn.Parameter(torch.randn(1, 1, 3))
        self.double()

    def forward(self, x: Tensor, *more: Any) -> Any:
        return self.function(self, x, *more)
