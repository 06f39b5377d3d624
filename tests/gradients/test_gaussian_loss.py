"""The Gaussian loss, which raises small variances where gradients are off, and checks what it is given by a branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

TARGET = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


class Moments(nn.Module):
    """A mean and a variance, of which some are 0: less than what the loss takes for the least."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.hidden, self.mean, self.variance = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.hidden(x))
        return self.mean(h), F.softplus(self.variance(h)) * self.mask


class WithLoss(nn.Module):
    """The same with its loss inside."""

    def __init__(self, moments: Moments, loss: nn.Module) -> None:
        super().__init__()
        self.moments, self.loss = moments, loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        mean, variance = self.moments(x)
        result: Tensor = self.loss(mean, target, variance)
        return result


def gradients(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    value.backward()
    found = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("how", [{}, {"full": True}, {"reduction": "sum"}, {"eps": 0.3}], ids=str)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mask", [torch.tensor([1.0, 0, 1]), torch.tensor([[1.0], [1], [0], [1], [1]])], ids=["c", "r"])
def test_gradients_of_the_gaussian_loss(how: dict[str, Any], inside: bool, mask: Tensor) -> None:
    torch.manual_seed(0)
    moments, x, loss = Moments(mask).double(), torch.randn(5, 4, dtype=torch.float64), nn.GaussianNLLLoss(**how)

    def taken(result: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        value: Tensor = loss(result[0], target, result[1])
        return value

    whole = WithLoss(moments, loss)
    wanted = gradients(whole(x, TARGET), moments)
    assert wanted["variance.weight"].abs().max() > 0
    if inside:
        got = gradients(pccompile.compile(whole, (x, TARGET))(x, TARGET), moments)
    else:
        got = gradients(pccompile.compile(moments, (x,), loss=taken).loss(x, target=TARGET), moments)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)
