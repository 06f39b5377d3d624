"""What forward reads and writes through `.data` and `detach()`: the same memory, without a gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Model(nn.Module):
    """A layer, a weight and a buffer, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.layer, self.p = run, nn.Linear(4, 4), nn.Parameter(torch.ones(4))
        self.register_buffer("b", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def buffer_assigned(m: Any, x: Tensor) -> Tensor:
    m.b.data = m.b.data * 0.9 + x.mean(0).detach()
    return m.layer(x) + m.b  # type: ignore[no-any-return]


def buffer_copied(m: Any, x: Tensor) -> Tensor:
    m.b.data.copy_(x.mean(0).detach())
    return m.layer(x) + m.b  # type: ignore[no-any-return]


def buffer_chained(m: Any, x: Tensor) -> Tensor:
    m.b.data.mul_(0.9).add_(x.mean(0).detach())
    return m.layer(x) * m.b  # type: ignore[no-any-return]


def buffer_entry(m: Any, x: Tensor) -> Tensor:
    m.b.data[0] = x.mean().detach()
    return m.layer(x) + m.b  # type: ignore[no-any-return]


def buffer_part(m: Any, x: Tensor) -> Tensor:
    m.b.detach()[:2].add_(x.mean())
    return m.layer(x) * m.b  # type: ignore[no-any-return]


def value_changed(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x)
    h.data.clamp_(-0.5, 0.5)
    return h * m.p  # type: ignore[no-any-return]


def value_assigned(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x)
    h.data = h * 2
    return h * m.p  # type: ignore[no-any-return]


def argument_changed(m: Any, x: Tensor) -> Tensor:
    x.data.mul_(2)
    return m.layer(x)  # type: ignore[no-any-return]


def only_read(m: Any, x: Tensor) -> Tensor:
    return m.layer(x) * m.layer.weight.data.norm() + x.data  # type: ignore[no-any-return]


@pytest.mark.parametrize("run", [buffer_assigned, buffer_copied, buffer_chained, buffer_entry, buffer_part,
                                 value_changed, value_assigned, argument_changed, only_read])  # fmt: skip
def test_what_is_done_through_data_is_done_as_in_eager_torch(run: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    eager = Model(run).double()
    model = copy.deepcopy(eager)
    pc = pccompile.compile(model, (torch.randn(3, 4, dtype=torch.float64),))
    for _ in range(3):
        x = torch.randn(3, 4, dtype=torch.float64)
        results = []
        for called, owner in ((eager, eager), (pc, model)):
            owner.zero_grad()
            given = x.clone()
            output = called(given)
            (output * torch.arange(4)).sum().backward()
            results.append((output.detach(), given, owner.b.clone(), [p.grad for p in owner.parameters()]))
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def parameter_assigned(m: Any, x: Tensor) -> Tensor:
    m.layer.weight.data = m.layer.weight.data.clamp(-1, 1)
    return m.layer(x)  # type: ignore[no-any-return]


def parameter_row(m: Any, x: Tensor) -> Tensor:
    m.layer.weight.data[0] = 0
    return m.layer(x)  # type: ignore[no-any-return]


def other_shape(m: Any, x: Tensor) -> Tensor:
    m.b.data = torch.zeros(7, dtype=x.dtype)
    return m.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (parameter_assigned, r"a parameter is changed in place at \(layer.weight\)"),
        (parameter_row, r"a parameter is changed in place at \(layer.weight\)"),
        (other_shape, r"an assignment to \.data in forward gives a tensor another shape or dtype"),
    ],
)
def test_what_cannot_be_done_through_data_is_named(run: Callable[..., Any], message: str) -> None:
    with pytest.raises(CompileError, match=message) as raised:
        pccompile.compile(Model(run), (torch.randn(3, 4),))
    assert len(str(raised.value).splitlines()) == 2
