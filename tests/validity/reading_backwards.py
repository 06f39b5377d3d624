"""A model with a custom backward behind it, and what such backwards may read from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
