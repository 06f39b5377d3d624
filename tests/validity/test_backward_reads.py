"""What custom backwards read from outside: eager torch reads it when the backward pass runs."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from validity.reading_backwards import CASES, ByModule, Net


def gradients(model: Any, called: Any, x: Tensor, between: Callable[[], object] = lambda: None) -> list[Tensor]:
    """Those of a call's squares; `between` the call and its backward pass something happens."""
    called.zero_grad()
    y = called(x)
    between()
    y.square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


QUICK = ("global", "row", "attribute", "operator")


IN_PIECES = ("global", "attribute", "table", "closure", "operator")
WAYS = [(c, "export", c in QUICK) for c in CASES] + [(c, "pieces", c == "global") for c in IN_PIECES]


@pytest.mark.parametrize(
    "case, capture", [pytest.param(c, w, marks=() if quick else pytest.mark.slow) for c, w, quick in WAYS]
)
def test_what_a_backward_reads_is_followed_before_a_call_and_refused_before_its_backward_pass(
    case: str, capture: Any
) -> None:
    run, change, words = CASES[case]
    torch.manual_seed(0)
    eager = Net(run).double()
    x, model = torch.randn(4, 6, dtype=torch.float64), copy.deepcopy(eager)
    pc = pccompile.compile(model, (x,), capture=capture)

    def both(value: float) -> None:
        change(eager, value)
        change(model, value)

    try:
        for value in (2.0, 3.0, 2.0):
            both(value)
            torch.testing.assert_close(gradients(model, pc, x), gradients(eager, eager, x))
        with pytest.raises(CompileError, match=words):
            gradients(model, pc, x, between=lambda: both(3.0))
        both(2.0)
        torch.testing.assert_close(
            gradients(model, pc, x, between=lambda: setattr(model, "unread", 3.0)), gradients(eager, eager, x)
        )
    finally:
        both(2.0)


def test_a_backward_may_read_a_parameter_that_an_optimizer_moves() -> None:
    torch.manual_seed(0)
    eager = Net(lambda m, h: ByModule.apply(h, m)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    pc = pccompile.compile(copy.deepcopy(eager), (x,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for called in (eager, pc):
            optimizer = torch.optim.SGD(called.parameters(), lr=0.01)
            for _ in range(5):
                gradients(called, called, x)
                optimizer.step()
    torch.testing.assert_close(list(pc.parameters()), list(eager.parameters()))
    assert sum("compiled anew again and again" in str(w.message) for w in caught) == 1


def test_models_without_derivatives_of_an_author_compare_nothing() -> None:
    pc = pccompile.compile(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (torch.randn(2, 3),))
    assert pc.prepare((torch.randn(2, 3),)).reads is None


CALLS = [0]


class Counting(torch.autograd.Function):
    """Reads in backward what forward counts, also while the compiler checks itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2 * CALLS[0]


def test_what_forward_itself_changes_is_compiled_once() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Counting.apply(x)

    stages: list[str] = []
    x = torch.randn(3, requires_grad=True)
    with contextlib.suppress(CompileError):
        pccompile.compile(Net(), (x,), hook=lambda stage, result, seconds: stages.append(stage))
    assert stages.count("emit") == 1
