"""Recurrent layers under torch.compile, over padded and packed sequences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 3), layer, nn.LazyLinear(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.layer(self.first(x))
        return self.last(y), *(state if isinstance(state, tuple) else (state,))


class Packed(Net):
    """The same on sequences of different lengths."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        lengths = torch.tensor([4, 2, 3]) if lengths is None else lengths
        packed = pack_padded_sequence(self.first(x), lengths, batch_first=True, enforce_sorted=False)
        y, state = self.layer(packed)
        return self.last(pad_packed_sequence(y, batch_first=True)[0]), *(
            state if isinstance(state, tuple) else (state,)
        )


LAYERS = {
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "two-way gru": lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True),
    "two rnns": lambda: nn.RNN(3, 4, num_layers=2, batch_first=True),
}
X = torch.linspace(-1, 1, 36).view(3, 4, 3).sin()


def step(run: Any, m: nn.Module, *args: Any) -> dict[str, Any]:
    m.zero_grad()
    results = run(*args)
    sum((i + 1) * r.square().sum() for i, r in enumerate(results)).backward()  # type: ignore[union-attr]
    return {k: p.grad for k, p in m.named_parameters()} | {"results": results}


def nodes(node: Any, names: set[str]) -> set[str]:
    """The kinds of autograd's nodes behind a result."""
    if node is not None and node.name() not in names:
        names.add(node.name())
        for before, _ in node.next_functions:
            nodes(before, names)
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_a_recurrent_layer_is_no_longer_left_to_autograd(layer: str) -> None:
    torch.manual_seed(0)
    m = Net(LAYERS[layer]())
    m(X)
    eager, run = copy.deepcopy(m), torch.compile(m, backend="pccompile")
    torch.testing.assert_close(step(run, m, X), step(eager, eager, X))
    found = nodes(run(X)[0].grad_fn, set()) - {"torch::autograd::AccumulateGrad"}
    assert found in ({"BridgeBackward"}, {"PlainStepBackward"})


@pytest.mark.parametrize("layer", LAYERS)
def test_packed_sequences(layer: str) -> None:
    torch.manual_seed(0)
    m = Packed(LAYERS[layer]())
    m(X)
    eager = copy.deepcopy(m)
    run = torch.compile(m, backend="pccompile")
    for lengths in ([4, 2, 3], [1, 4, 4], [2, 2, 1]):
        args = X, torch.tensor(lengths)
        torch.testing.assert_close(step(run, m, *args), step(eager, eager, *args))
