"""Python code that reads a tensor's value is refused with the line, the module and a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Model(nn.Module):
    """Layers in containers of every kind, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], part: nn.Module | None = None) -> None:
        super().__init__()
        self.run, self.first, self.part = run, nn.Linear(4, 4), part
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.named = nn.ModuleDict({str(i): nn.Linear(4, 4) for i in range(3)})
        self.scales = nn.ParameterList(torch.ones(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.first(x))


class Router(nn.Module):
    """Reads a value itself."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


def expert(m: Any, x: Tensor) -> Tensor:
    return m.experts[x.sum().long() % 3](x)  # type: ignore[no-any-return]


def scale(m: Any, x: Tensor) -> Tensor:
    return m.scales[x[0].argmax()] * x  # type: ignore[no-any-return]


def by_name(m: Any, x: Tensor) -> Tensor:
    return m.named[str(int(x[0].argmax()) % 3)](x)  # type: ignore[no-any-return]


def part(m: Any, x: Tensor) -> Tensor:
    return m.part(x)  # type: ignore[no-any-return]


READINGS: list[tuple[Model, str, str]] = [
    (Model(expert), r"a tensor's value chooses an entry of the ModuleList experts in `return m.experts\[.*`", "where"),
    (Model(scale), r"a tensor's value chooses an entry of the ParameterList scales", "torch.where"),
    (Model(by_name), r"Model reads a tensor's value in `return m.named\[", "torch.cond"),
    (Model(part, Router()), r"Router reads a tensor's value in `if x.sum\(\) > 0:` at .*\(part\)", "torch.where"),
    (
        Model(part, quantization.FakeQuantize.with_args()()),
        r"FakeQuantize reads a tensor's value in `if self.observer_enabled\[0\] == 1:` at .*\(part\)",
        "FusedMovingAvgObsFakeQuantize",
    ),
    (
        Model(part, quantization.MovingAverageMinMaxObserver()),
        "MovingAverageMinMaxObserver reads a tensor's value",
        "FusedMovingAvgObsFakeQuantize",
    ),
]


@pytest.mark.parametrize(("model", "message", "way_out"), READINGS)
def test_a_reading_is_named(model: Model, message: str, way_out: str) -> None:
    with pytest.raises(CompileError, match=message) as raised:
        pccompile.compile(model, (torch.randn(3, 4),), capture="export")
    what, hint = str(raised.value).splitlines()
    assert "at test_data_dependence.py:" in what
    assert way_out in hint
    assert 'torch.compile(model, backend="pccompile")' in hint


def trained_for_quantisation(backend: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.qconfig = quantization.get_default_qat_qconfig(backend)  # type: ignore[assignment]
    prepared: nn.Module = quantization.prepare_qat(model.train())
    return prepared


def test_statistics_without_entries_want_a_first_run() -> None:
    torch.manual_seed(0)
    model, x = trained_for_quantisation("fbgemm"), torch.randn(3, 4)
    with pytest.raises(
        CompileError, match=r"forward gives its first entries to 0.weight_fake_quant.*min_val"
    ) as raised:
        pccompile.compile(model, (x,))
    assert "run the model once" in str(raised.value)
    model(x)
    pc = pccompile.compile(model, (x,))
    pc(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", [quantization.FakeQuantize, quantization.FusedMovingAvgObsFakeQuantize])
def test_observers_move_and_gradients_go_straight_through(kind: Any) -> None:
    """By torch.compile, where they read values; the fused kind as a whole."""
    torch.manual_seed(0)
    x, found = torch.randn(3, 4), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Model(part, kind.with_args(observer=quantization.MovingAverageMinMaxObserver)())
        called = torch.compile(model, backend="pccompile") if compiled else model
        for step in range(2):
            called(x + step).square().sum().backward()
        found.append((model.first.weight.grad, dict(model.named_buffers())))
    torch.testing.assert_close(found[1], found[0])
