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

GAIN = 2.0
ROW = torch.full((5,), 2.0, dtype=torch.float64)
ONE = torch.tensor(2.0, dtype=torch.float64)
TABLE: dict[str, Any] = {"gain": 2.0, "nested": [2.0]}


class ByName(torch.autograd.Function):
    """Backward reads a global number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * gain()


def gain() -> float:
    """Read by a function that backward calls."""
    return GAIN


class ByTensor(torch.autograd.Function):
    """Backward reads global tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ROW * ONE


class ByTable(torch.autograd.Function):
    """Backward reads a dictionary that forward puts into the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.table = TABLE
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.table["gain"] * ctx.table["nested"][0]


class ByModule(torch.autograd.Function):
    """Backward reads attributes of a module that forward puts into the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.module.gain * ctx.module.inner.row * ctx.module.weight, None


def set_up(ctx: Any, inputs: Any, output: Tensor) -> None:
    """What the operator's backward is given."""
    ctx.table = TABLE


@torch.library.custom_op("pccompile_reads::identity", mutates_args=())
def identity(x: Tensor) -> Tensor:
    """The identity with a backward that reads globals."""
    return x * 1


@identity.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


identity.register_autograd(lambda ctx, g: g * GAIN * ctx.table["gain"] * ROW, setup_context=set_up)


LIBRARY = torch.library.Library("pccompile_reads", "FRAGMENT")


def reading(ctx: Any, g: Tensor) -> Tensor:
    """A formula that reads globals and what `set_up` keeps."""
    return g * GAIN * ctx.table["gain"] * ROW


def operator(name: str, schema: str, run: Callable[..., Any]) -> Any:
    """An operator of a library that no decorator has made."""
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pccompile_reads::{name}", run, lib=LIBRARY)
    return getattr(torch.ops.pccompile_reads, name)


defined = operator("defined", "(Tensor x) -> Tensor", lambda x: x * 1)
torch.library.register_autograd("pccompile_reads::defined", reading, setup_context=set_up, lib=LIBRARY)

listed = operator("listed", "(Tensor[] xs) -> Tensor", lambda xs: torch.stack(list(xs)).sum(0))
torch.library.register_autograd(
    "pccompile_reads::listed", lambda ctx, g: [reading(ctx, g)] * 2, setup_context=set_up, lib=LIBRARY
)


class Below(torch.autograd.Function):
    """The derivative that an operator has as its kernel for autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.pccompile_reads.kernel(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * GAIN * TABLE["gain"] * ROW


kernel = operator("kernel", "(Tensor x) -> Tensor", lambda x: x * 1)
LIBRARY.impl("kernel", Below.apply, "Autograd")


def around(number: float) -> tuple[Any, Callable[[float], None]]:
    """A Function with a number around its backward, and what sets the number."""

    class Around(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * number

    def put(value: float) -> None:
        nonlocal number
        number = value

    return Around, put


AROUND, PUT = around(2.0)


class Inner(nn.Module):
    """Holds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("row", torch.full((5,), 2.0))


class Net(nn.Module):
    """A layer with a Function behind it."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fc, self.inner, self.run = nn.Linear(6, 5), Inner(), run
        self.weight, self.gain, self.unread = nn.Parameter(torch.ones(5)), 2.0, 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.fc(x)) * self.weight


def put_global(m: Any, value: float) -> None:
    global GAIN
    GAIN = value


def in_module(name: str) -> Callable[[Any, float], None]:
    return lambda m, value: setattr(m, name, value)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[Any, float], object], str]] = {
    "global": (lambda m, h: ByName.apply(h), put_global, r"ByName.backward reads GAIN"),
    "row": (lambda m, h: ByTensor.apply(h), lambda m, v: ROW.fill_(v), r"ByTensor.backward reads a tensor \(5,\)"),
    "one": (lambda m, h: ByTensor.apply(h), lambda m, v: ONE.fill_(v), r"ByTensor.backward reads a tensor \(\)"),
    "table": (lambda m, h: ByTable.apply(h), lambda m, v: TABLE.update(gain=v), "ByTable.backward reads gain"),
    "nested": (lambda m, h: ByTable.apply(h), lambda m, v: TABLE.update(nested=[v]), "ByTable.backward reads nested"),
    "attribute": (lambda m, h: ByModule.apply(h, m), in_module("gain"), "ByModule.backward reads gain"),
    "buffer": (
        lambda m, h: ByModule.apply(h, m),
        lambda m, v: m.inner.row.fill_(v),
        r"ByModule.backward reads a tensor \(5,\)",
    ),
    "replaced": (
        lambda m, h: ByModule.apply(h, m),
        lambda m, v: setattr(m.inner, "row", torch.full_like(m.inner.row, v)),
        "ByModule.backward reads row",
    ),
    "closure": (lambda m, h: AROUND.apply(h), lambda m, v: PUT(v), "Around.backward reads number"),
    "operator": (lambda m, h: identity(h), put_global, "the backward of pccompile_reads.identity reads GAIN"),
    "defined": (lambda m, h: defined(h), put_global, "the backward of pccompile_reads.defined reads GAIN"),
    "defined's context": (lambda m, h: defined(h), lambda m, v: TABLE.update(gain=v), "defined reads gain"),
    "defined's tensor": (lambda m, h: defined(h), lambda m, v: ROW.fill_(v), r"defined reads a tensor \(5,\)"),
    "list": (lambda m, h: listed([h, 2 * h]), put_global, "the backward of pccompile_reads.listed reads GAIN"),
    "kernel": (lambda m, h: kernel(h), put_global, "the backward of pccompile_reads.kernel reads GAIN"),
    "kernel's tensor": (lambda m, h: kernel(h), lambda m, v: ROW.fill_(v), r"kernel reads a tensor \(5,\)"),
    "operator's context": (lambda m, h: identity(h), lambda m, v: TABLE.update(gain=v), "identity reads gain"),
    "operator's tensor": (lambda m, h: identity(h), lambda m, v: ROW.fill_(v), r"identity reads a tensor \(5,\)"),
}


def gradients(model: Any, called: Any, x: Tensor, between: Callable[[], object] = lambda: None) -> list[Tensor]:
    """Those of a call's squares; `between` the call and its backward pass something happens."""
    called.zero_grad()
    y = called(x)
    between()
    y.square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


QUICK = ("global", "row", "attribute", "operator")
SHARED = [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES]


@pytest.mark.parametrize("case", SHARED)
def test_what_a_backward_reads_is_followed_before_a_call_and_refused_before_its_backward_pass(case: str) -> None:
    run, change, words = CASES[case]
    torch.manual_seed(0)
    eager = Net(run).double()
    x, model = torch.randn(4, 6, dtype=torch.float64), copy.deepcopy(eager)
    pc = pccompile.compile(model, (x,))

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


IN_PIECES = ("global", "attribute", "table", "closure", "operator")


@pytest.mark.parametrize("case", [IN_PIECES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in IN_PIECES[1:])])
def test_what_a_backward_reads_of_a_model_in_pieces(case: str) -> None:
    run, change, words = CASES[case]
    torch.manual_seed(0)
    eager = Net(run).double()
    x, model = torch.randn(4, 6, dtype=torch.float64), copy.deepcopy(eager)
    pc = pccompile.compile(model, (x,), capture="pieces")

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
        torch.testing.assert_close(gradients(model, pc, x), gradients(eager, eager, x))
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
