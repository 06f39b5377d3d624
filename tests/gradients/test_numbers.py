"""Numbers that a model reads from its tensors: operands that no error passes through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import distance, gradients, half_squares, seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError

Use = Callable[[Tensor, Any, Any], Any]


class Reader(nn.Module):
    """Reads a float and an integer from its values."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.fc, self.use = nn.Linear(4, 4), use

    def forward(self, x: Tensor) -> Any:
        h = self.fc(x).abs() + 0.1
        return self.use(h, h.max().item(), (x[:, 0] > 0).sum().item())


USES: dict[str, Use] = {
    "quotient": lambda h, a, n: h / a - a / h,
    "arithmetic": lambda h, a, n: (h * (2 * a + 1) - (a - h)) / (n + 1),
    "bounds": lambda h, a, n: torch.clamp(h, min=0.1, max=a / 2) + torch.clamp(h, max=a / 3),
    "powers": lambda h, a, n: h**a + a**h + h * a**0.5,
    "no_dimensions": lambda h, a, n: h.sum() * a,
    "comparison": lambda h, a, n: torch.where(h > a / 2, h, 2 * h),
    "filled": lambda h, a, n: h * torch.full((4,), a, dtype=h.dtype),
    "in_place": lambda h, a, n: h.mul_(a).add_(n),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", USES)
def test_a_number_is_an_operand(name: str, dtype: torch.dtype) -> None:
    make = lambda: Reader(USES[name])  # noqa: E731
    pc, plain = pccompile.compile(seeded(make, dtype), (torch.randn(3, 4, dtype=dtype),)), seeded(make, dtype)
    x = torch.randn(5, 4, dtype=dtype)
    found, wanted = pc(x), plain(x)
    assert found.dtype is wanted.dtype
    torch.testing.assert_close(found, wanted)
    limit = 1e-12 if dtype is torch.float64 else 1e-6
    assert distance(gradients(pc, half_squares(found)), gradients(plain, half_squares(wanted))) < limit


class Counter(nn.Module):
    """`use` of hidden values and of where the inputs' first entries are positive."""

    def __init__(self, use: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.use = nn.Linear(4, 4), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.a(x), x[:, 0] > 0)


def grouped(h: Tensor, where: Tensor) -> Tensor:
    groups, group = torch.unique(where, return_inverse=True)
    return torch.zeros(groups.shape[0], 4, dtype=h.dtype).index_add(0, group, h)


def split(h: Tensor, where: Tensor) -> Tensor:
    first, second, third = torch.tensor_split(h, torch.stack([where.sum(), (~where).sum()]))
    return second.sin().sum(0) * first.shape[0] + third.square().sum(0)


COUNTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "places": lambda h, where: h.sum(0) * where.nonzero().shape[0],
    "chosen": lambda h, where: h[where].sum(0) / (h[where].shape[0] + 1),
    "unread": lambda h, where: h.sum(0) * h[where].shape[0],
    "index": lambda h, where: h[where.nonzero(as_tuple=True)[0]].exp(),
    "grouped": grouped,
    "kinds": lambda h, where: h.sum(0) * torch.unique_consecutive(where).shape[0],
    "split": split,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_length_that_the_data_decides(name: str) -> None:
    make = lambda: Counter(COUNTS[name])  # noqa: E731
    x = torch.randn(7, 4, dtype=torch.float64)
    pc, plain = pccompile.compile(seeded(make), (x,)), seeded(make)
    for y in (x, -x, x[:5], x.abs()):
        found, wanted = pc(y), plain(y)
        torch.testing.assert_close(found, wanted)
        assert distance(gradients(pc, half_squares(found)), gradients(plain, half_squares(wanted))) < 1e-12


def test_a_number_is_returned_as_a_number() -> None:
    make = lambda: Reader(lambda h, a, n: (h, a, n))  # noqa: E731
    x = torch.randn(3, 4, dtype=torch.float64)
    _, a, n = pccompile.compile(seeded(make), (x,))(x)
    _, b, m = seeded(make)(x)
    assert (type(a), type(n)) == (float, int)
    assert (math.isclose(a, b), n) == (True, m)


@pytest.mark.parametrize("use", [lambda h, a, n: h[:n], lambda h, a, n: F.leaky_relu(h, a)])
def test_a_number_that_is_a_size_or_a_setting_is_refused(use: Use) -> None:
    with pytest.raises(CompileError, match="read from a tensor's contents"):
        pccompile.compile(Reader(use), (torch.randn(3, 4),), capture="export")
