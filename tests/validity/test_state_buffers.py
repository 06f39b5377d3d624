"""Buffers that a model reads and then writes: what is handed on is from before the write. Judged by eager torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import pccompile


class _Bank(nn.Module):
    """A layer whose result is compared with the rows of a bank, which is written afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)
        self.register_buffer("bank", torch.randn(5, 5))
        self.register_buffer("other", torch.randn(5, 5))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))


class _Queue(_Bank):
    """Momentum contrast: the newest keys replace the oldest, at a pointer."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = z @ self.bank.clone().detach().t()
        places = (self.pointer + torch.arange(4)) % 5
        self.bank[places] = z.detach()
        self.pointer[0] = (self.pointer[0] + 4) % 5
        return y


class _Slice(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = z @ self.bank.clone().detach().t()
        self.bank[:2] = z.detach()[:2]
        return y


class _Zero(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) @ self.bank.clone()
        self.bank.zero_()
        return y


class _Column(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) * self.bank.clone()[:, 0]
        self.bank[:, 0].mul_(0.5)
        return y


class _Roll(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) @ self.bank.clone().reshape(25).reshape(5, 5)
        self.bank.copy_(self.bank.roll(1, 0))
        return y


class _Indexed(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        y = (self.fc(x) @ self.bank.clone().transpose(0, 1)).tanh()
        self.bank.index_add_(0, torch.tensor([1, 3]), y.detach()[:2])
        return y


class _Mean(_Bank):
    """A running mean written by hand, in four ways, each read before."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = z * self.bank.clone()[:4] + z * self.other.clone()[0]
        self.bank.mul_(0.9).add_(0.1 * z.detach().mean(0))
        self.other.lerp_(z.detach().mean(0).expand(5, 5), 0.1)
        return y


class _Swap(_Bank):
    """What is now and what was before: each takes the place of the other."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) @ self.bank.clone() @ self.other.clone()
        before = self.bank.clone()
        self.bank.copy_(self.other)
        self.other.copy_(before)
        return y


class _Shift(_Bank):
    """The last value but one."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        y = z @ self.bank.clone() + z @ self.other.clone()
        self.other.copy_(self.bank)
        self.bank[:4].copy_(z.detach())
        return y


class _Transposed(_Bank):
    """A buffer that takes its own transpose."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) @ self.bank.clone()
        self.bank.copy_(self.bank.t().clone())
        return y


class _Shown(_Bank):
    """The rows before the write are a result."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.bank.clone()
        y = self.fc(x) @ before
        self.bank.add_(1)
        return y, before[:2]


class _Gathered(_Bank):
    """Rows that an index chooses, and a scatter that writes them back."""

    def forward(self, x: Tensor) -> Tensor:
        index = torch.tensor([[0, 1, 2, 3, 4]])
        y = self.fc(x) * self.bank.clone().gather(0, index)
        self.bank.scatter_(0, index, y.detach()[:1])
        return y


class _Masked(_Bank):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) @ self.bank.clone()
        self.bank.masked_fill_(self.bank > 0, -1.0)
        return y


BANKS = (_Queue, _Slice, _Zero, _Column, _Roll, _Indexed, _Mean, _Swap, _Shift, _Transposed, _Shown, _Gathered, _Masked)


def _gradients(model: nn.Module, call: nn.Module, xs: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients of three calls, each with a backward pass of its own."""
    found = []
    for x in xs:
        model.zero_grad()
        outputs = call(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(o.square().sum() for o in outputs).backward()
        found += [*(o.detach().clone() for o in outputs), *(p.grad.clone() for p in model.parameters())]
    return [*found, *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("kind", BANKS)
def test_a_buffer_is_read_from_before_it_is_written(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    xs = list(torch.randn(3, 4, 3, dtype=torch.float64))
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, xs[0])
    for ours, theirs in zip(_gradients(model, pc, xs), _gradients(twin, twin, xs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_running_statistics_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    assert ".clone()" not in pccompile.compile(model, torch.randn(8, 3)).source


def test_a_buffer_that_nothing_writes_is_not_copied() -> None:
    class Fixed(_Bank):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) @ self.bank.clone().detach().t()

    assert ".clone()" not in pccompile.compile(Fixed(), torch.randn(4, 3)).source
