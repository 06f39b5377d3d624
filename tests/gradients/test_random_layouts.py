"""Random numbers for tensors that do not lie in rows: drawn in the order in which eager torch draws them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.5),
    "dropout of a column": lambda h: F.dropout(h[:, :1].expand(-1, 7, -1), 0.5),
    "dropout of a part": lambda h: F.dropout(h[:, ::2], 0.5),
    "dropout of what is computed": lambda h: F.dropout(torch.relu(h) * 2 + h, 0.5),
    "dropout of a permutation": lambda h: F.dropout(h.permute(2, 1, 0), 0.3),
    "dropout of channels": lambda h: F.dropout1d(h, 0.5),
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.3, True),
    "alpha dropout of all": lambda h: F.alpha_dropout(h, 1.0, True),
    "alpha dropout of channels": lambda h: F.feature_alpha_dropout(h, 0.5, True),
    "rrelu": lambda h: F.rrelu(h, training=True),
    "bernoulli_": lambda h: h * torch.empty_like(h).bernoulli_(0.3),
    "bernoulli_ of a half": lambda h: h * torch.empty_like(h).bernoulli_(),
    "bernoulli_ of tensors": lambda h: h * torch.empty_like(h).bernoulli_(h.detach().sigmoid()),
    "bernoulli": lambda h: h * torch.bernoulli(h.detach().sigmoid()),
    "bernoulli of a number": lambda h: h * torch.bernoulli(h.detach(), 0.3),
    "rand_like": lambda h: h * torch.rand_like(h),
    "normal_": lambda h: h * torch.empty_like(h).normal_(),
    "uniform_": lambda h: h * torch.empty_like(h).uniform_(),
    "exponential_": lambda h: h * torch.empty_like(h).exponential_(),
}


class Turned(nn.Module):
    """A function of a linear layer's output with its first two axes turned."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x).transpose(0, 1))


def assert_drawn_alike(model: nn.Module, x: Tensor) -> None:
    """Outputs and gradients of one seed are eager torch's, and so is the next number of the stream."""
    pc = pccompile.compile(model, (x,))
    found = []
    for module in (model, pc):
        torch.manual_seed(1)
        output = module(x)
        gradients = torch.autograd.grad(output.square().sum(), list(model.parameters()), allow_unused=True)
        found.append((output, *(torch.zeros(1) if g is None else g for g in gradients), torch.rand(1)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_of_turned_tensors(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    assert_drawn_alike(Turned(DRAWS[name]).double(), x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers_in_training(batch_first: bool, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=batch_first, norm_first=norm_first).double()
    assert_drawn_alike(layer, torch.randn(2, 3, 4, dtype=torch.float64))


def test_a_recurrent_layer_with_dropout() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, 3, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    torch.manual_seed(0)
    assert_drawn_alike(Last().double(), torch.randn(2, 3, 4, dtype=torch.float64))
