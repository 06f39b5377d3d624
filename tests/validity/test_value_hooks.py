"""Hooks on values: those put on in forward are refused, those put on afterwards see what eager's see or are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Shows(nn.Module):
    """Keeps one value, returns a second one, and computes a third one from both."""

    def __init__(self, inside: Callable[[Tensor], Any] = lambda h: None) -> None:
        super().__init__()
        self.first, self.second, self.inside = nn.Linear(3, 4), nn.Linear(4, 2), inside
        self.kept: Any = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.first(x))
        self.inside(hidden)
        self.kept = hidden
        features = hidden * 2
        return features, self.second(features)


ASK: dict[str, Callable[[Tensor, list[Tensor]], Any]] = {
    "hook": lambda t, seen: t.register_hook(lambda g: seen.append(g)),
    "method": lambda t, seen: t.register_hook(seen.append),
    "retain": lambda t, seen: t.retain_grad(),
}
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    eager = Shows()
    return eager, pccompile.compile(copy.deepcopy(eager), (X,))


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_within_forward(ask: Callable[[Tensor, list[Tensor]], Any]) -> None:
    with pytest.raises(CompileError, match=r"register_hook|retain_grad"):
        pccompile.compile(Shows(lambda h: ask(h, [])), (X,), capture="export")
    assert torch.ones(1, requires_grad=True).mul(1).retain_grad() is None


@pytest.mark.parametrize("ask", [ASK["hook"], lambda t, seen: t.register_hook(lambda g: seen.append(g) or 3 * g)])
def test_within_forward_between_pieces(ask: Callable[[Tensor, list[Tensor]], Any]) -> None:
    torch.manual_seed(0)
    eager, found = Shows(), list[list[Tensor]]([[], []])
    compiled = copy.deepcopy(eager)
    eager.inside, compiled.inside = lambda h: ask(h, found[0]), lambda h: ask(h, found[1])
    pc = pccompile.compile(compiled, (X,))
    for seen, model in zip(found, (eager, pc), strict=True):
        seen.clear()
        features, y = model(X)
        (y.sum() + features.square().sum()).backward()
    torch.testing.assert_close(found[1], found[0])
    for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("place", ["the state kept", "output 0 of the model"])
def test_on_what_the_loss_goes_through(ask: Callable[[Tensor, list[Tensor]], Any], place: str) -> None:
    _, pc = pair()
    features, y = pc(X)
    ask(pc.model.kept if "kept" in place else features, [])
    with pytest.raises(CompileError, match=place):
        y.sum().backward()


def test_a_hook_that_was_removed_is_none() -> None:
    eager, pc = pair()
    for model in (eager, pc):
        y = model(X)[1]
        (model if model is eager else model.model).kept.register_hook(lambda g: 2 * g).remove()
        y.sum().backward()
    torch.testing.assert_close(pc.model.first.weight.grad, eager.first.weight.grad)


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_on_the_last_value(ask: Callable[[Tensor, list[Tensor]], Any]) -> None:
    found: list[list[Tensor]] = []
    for model in pair():
        seen: list[Tensor] = []
        y = model(X)[1]
        ask(y, seen)
        y.square().sum().backward()
        found.append([*seen, *([y.grad] if y.retains_grad else [])])
    assert len(found[0]) == 1
    torch.testing.assert_close(found[1], found[0])


def test_on_a_value_that_the_loss_reads_outside_only() -> None:
    found: list[Tensor] = []
    for model in pair():
        features, _ = model(X)
        features.register_hook(found.append)
        features.square().sum().backward()
    torch.testing.assert_close(found[1], found[0])
