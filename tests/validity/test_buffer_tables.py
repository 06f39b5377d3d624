"""Buffers that forward takes out of a module's table itself, or puts there: read, written, or both, in any order."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pccompile

READ: dict[str, Callable[[nn.Module], Tensor]] = {
    "attribute": lambda m: m.mean,
    "getattr": lambda m: getattr(m, "mean"),  # noqa: B009
    "table": lambda m: m._buffers["mean"],
    "get": lambda m: m._buffers.get("mean"),
    "buffers": lambda m: next(m.buffers()),
    "named": lambda m: dict(m.named_buffers())["mean"],
    "get_buffer": lambda m: m.get_buffer("mean"),
    "state_dict": lambda m: m.state_dict(keep_vars=True)["mean"],
    "modules": lambda m: next(iter(m.modules()))._buffers["mean"],
}
WRITTEN: dict[str, Callable[[nn.Module, Tensor, Callable[[nn.Module], Tensor]], object]] = {
    "attribute": lambda m, value, read: setattr(m, "mean", value),
    "table": lambda m, value, read: m._buffers.__setitem__("mean", value),
    "copy_": lambda m, value, read: read(m).copy_(value),
    "add_": lambda m, value, read: read(m).add_(value),
    "data": lambda m, value, read: setattr(read(m), "data", value),
}
ORDERS = ("read, written", "written, read", "written", "overwritten, read")
KEPT = {("read, written", how) for how in ("copy_", "add_", "data")}
"""Eager torch refuses the backward pass, or has that of the value after the write."""


class Running(nn.Module):
    """A layer, and a mean that moves with what it sees."""

    def __init__(self, read: str, written: str, order: str) -> None:
        super().__init__()
        self.layer, self.order, self.how = nn.Linear(3, 3), order, (read, written)
        self.register_buffer("mean", torch.rand(3))

    def read(self) -> Tensor:
        return READ[self.how[0]](self)

    def write(self, value: Tensor) -> None:
        WRITTEN[self.how[1]](self, value.detach(), READ[self.how[0]])

    def forward(self, x: Tensor) -> Tensor:
        seen = x.mean(0)
        if self.order == "read, written":
            y = self.layer(x) * self.read()
            self.write(0.5 * self.read() + 0.5 * seen)
            return y
        self.write(0.5 * self.read() + 0.5 * seen if self.order == "written, read" else seen)
        return self.layer(x) if self.order == "written" else self.layer(x) * self.read()


def case(read: str, written: str, order: str) -> tuple[Running, nn.Module, Running]:
    torch.manual_seed(0)
    model = Running(read, written, order).double()
    eager = copy.deepcopy(model)
    return model, pccompile.compile(model, (torch.randn(3, 3, dtype=torch.float64),)), eager


CASES = [c for c in itertools.product(READ, WRITTEN, ORDERS) if (c[2], c[1]) not in KEPT]


@pytest.mark.quick(12)
@pytest.mark.parametrize(("read", "written", "order"), CASES)
def test_three_calls_are_those_of_eager_torch(read: str, written: str, order: str) -> None:
    model, pc, eager = case(read, written, order)
    for count in (3, 5, 3):
        x = torch.randn(count, 3, dtype=torch.float64)
        for m in (pc, eager):
            m(x).pow(2).sum().backward()
        torch.testing.assert_close(model.mean, eager.mean, rtol=1e-12, atol=1e-12)
        for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.quick(2)
@pytest.mark.parametrize("written", ["copy_", "add_"])
@pytest.mark.parametrize("read", READ)
def test_what_is_read_before_a_write_in_place_has_the_gradient_of_what_was_read(read: str, written: str) -> None:
    model, pc, eager = case(read, written, "read, written")
    assert any("not compared with eager torch: it does not run" in note for note in pc.notes)
    x, scale = torch.randn(3, 3, dtype=torch.float64), model.mean.clone()
    pc(x).sum().backward()
    with pytest.raises(RuntimeError, match="inplace"):
        eager(x).sum().backward()
    wanted = scale[:, None] * x.sum(0)
    torch.testing.assert_close(model.layer.weight.grad, wanted, rtol=1e-10, atol=1e-12)


def test_a_write_past_autograd_is_refused() -> None:
    with pytest.raises(pccompile.CompileError, match="differ from eager torch"):
        case("attribute", "data", "read, written")
