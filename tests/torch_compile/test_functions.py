"""Custom autograd Functions: results without gradient, gradients that are absent, numbers from outside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pccompile
from pccompile import CompileError

OUTSIDE = {"factor": 2.0}
ROADS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "export": lambda model, x: pccompile.compile(model, (x,)),
    "torch.compile": lambda model, x: torch.compile(model, backend="pccompile"),
}
X = torch.linspace(-2, 2, 24, dtype=torch.float64).view(6, 4).sin()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    OUTSIDE["factor"] = 2.0
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.run, self.alpha = nn.Linear(4, 4), nn.Linear(4, 4), run, 0.5

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Squared(torch.autograd.Function):
    """x² and a result without gradient, whose absent gradient backward reads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        still = (x > 0) * x
        ctx.mark_non_differentiable(still)
        ctx.save_for_backward(x)
        return x * x, still

    @staticmethod
    def backward(ctx: Any, error: Tensor, still: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * error * x + still


class SignFirst(torch.autograd.Function):
    """The result without gradient comes first, and is of an argument that has one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sign = x.sign()
        ctx.mark_non_differentiable(sign)
        return sign, x * y, 3 * y

    @staticmethod
    def backward(ctx: Any, sign: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * first + sign, second + sign


class Sorted(torch.autograd.Function):
    """Values and indices, by setup_context."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = x.sort(dim=1)
        return 2 * values, indices

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, error: Tensor, indices: Tensor) -> Tensor:
        return 3 * error


class OfAModule(torch.autograd.Function):
    """Forward and backward read an attribute of a module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Net) -> Tensor:
        ctx.module = module
        return x * module.alpha

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        return 3 * error * ctx.module.alpha, None


class OfAGlobal(torch.autograd.Function):
    """Only backward reads a number from outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:
        return error * OUTSIDE["factor"]


class Absent(torch.autograd.Function):
    """Backward decides by which gradients are there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return 2 * x, 3 * y

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None if first is None else first * (2 if second is None else 5), None if second is None else 7 * second


class AbsentOfOne(torch.autograd.Function):
    """One result: its gradient is there whenever backward runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, error: Tensor | None) -> Tensor | None:
        return None if error is None else 3 * error


def squared(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y, still = Squared.apply(m.a(x))
    return m.b(y) * still + m.b(still), still


def squared_for_the_still_part(m: Net, x: Tensor) -> Tensor:
    y, still = Squared.apply(m.a(x))
    return m.b(still) + y.detach()


def sign_first(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    sign, first, second = SignFirst.apply(m.a(x), m.b(x))
    return sign * first + second, sign


def sorted_values(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = Sorted.apply(m.a(x))
    return m.b(values) * indices, values


def absent_of_one(m: Net, x: Tensor) -> Tensor:
    return m.b(AbsentOfOne.apply(m.a(x)))


def of_a_module(m: Net, x: Tensor) -> Tensor:
    return m.b(OfAModule.apply(m.a(x), m))


def of_a_global(m: Net, x: Tensor) -> Tensor:
    return m.b(OfAGlobal.apply(m.a(x)))


def hooked(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    if h.requires_grad:
        h.register_hook(lambda g: g * m.alpha)
    return m.b(h)


def checkpointed(m: Net, x: Tensor) -> Tensor:
    def part(v: Tensor) -> Tensor:
        return F.leaky_relu(torch.tanh(m.a(v)) * m.alpha, m.alpha)

    return m.b(checkpoint(part, x, use_reentrant=False))


def step(run: Callable[[Tensor], Any], m: Net) -> dict[str, Any]:
    m.zero_grad()
    x = X.clone().requires_grad_()
    result = run(x)
    results = result if isinstance(result, tuple) else (result,)
    loss = sum((i + 1) * r.square().sum() for i, r in enumerate(results) if r.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = {k: p.grad for k, p in m.named_parameters()}
    return {**gradients, "x": x.grad, "results": results, "carry": [r.requires_grad for r in results]}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("run", [squared, squared_for_the_still_part, sign_first, sorted_values, absent_of_one])
def test_results_without_gradient_send_none(run: Callable[..., Any], road: str) -> None:
    torch.manual_seed(0)
    m = Net(run).double()
    eager = copy.deepcopy(m)
    call = ROADS[road](m, X)
    for _ in range(2):
        torch.testing.assert_close(step(call, m), step(eager, eager))


@pytest.mark.parametrize("run", [of_a_module, of_a_global, hooked, checkpointed])
def test_numbers_from_outside_that_change(run: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    m = Net(run).double()
    call, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    for number in (0.5, 0.75, 0.25, 0.75, 0.5):
        m.alpha = eager.alpha = OUTSIDE["factor"] = number
        torch.testing.assert_close(step(call, m), step(eager, eager))


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["first", "second", "both"])
def test_gradients_that_may_be_absent_are_refused(which: slice) -> None:
    m = Net(lambda m, x: Absent.apply(m.a(x), m.b(x))[which]).double()
    with pytest.raises(CompileError, match="takes absent gradients"):
        step(torch.compile(m, backend="pccompile"), m)
