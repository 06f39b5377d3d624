"""What a program rests on besides its model: kinds of tensors, and settings of torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Named(Tensor):
    """A kind of tensors that only has a name."""

    label = "named"


class Doubling(Tensor):
    """Linear layers double it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 2 if func is torch.nn.functional.linear else result


class Scaled(Tensor):
    """Multiplied otherwise."""

    def __mul__(self, other: Any) -> Any:
        return super().__mul__(other) + 1


class Net(nn.Module):
    """A layer, and tensors that forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("row", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * 2) * torch.linspace(0.1, 1, 4) + self.row * torch.tensor(1 / 3)


def pair(**how: Any) -> tuple[nn.Module, nn.Module, Any]:
    torch.manual_seed(0)
    eager = Net()
    model = copy.deepcopy(eager)
    return eager, model, pccompile.compile(model, (torch.randn(3, 4),), **how)


def trained(own: nn.Module, called: Any, x: Tensor) -> list[Tensor]:
    own.zero_grad()
    y = called(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in own.parameters() if p.grad is not None)]


def test_tensors_with_a_name_of_their_own_are_tensors() -> None:
    eager, model, pc = pair()
    x = torch.randn(3, 4)
    found = trained(model, pc, x.as_subclass(Named))
    torch.testing.assert_close(found, [t.as_subclass(Tensor) for t in trained(eager, eager, x.as_subclass(Named))])


@pytest.mark.parametrize("kind", [Doubling, Scaled])
def test_tensors_with_operations_of_their_own_are_named(kind: type[Tensor]) -> None:
    _, model, pc = pair()
    x = torch.randn(3, 4)
    words = f"is a {kind.__name__}, a kind of tensor with operations of its own"
    with pytest.raises(CompileError, match=f"argument 0 {words}"):
        pc(x.as_subclass(kind))
    with pytest.raises(CompileError, match=f"a target {words}"):
        pc.loss(x, target=x.as_subclass(kind))
    model.row = torch.ones(4).as_subclass(kind)
    with pytest.raises(CompileError, match=f"row {words}"):
        pc(x)
    model.row = torch.ones(4)
    pc(x).sum().backward()
    model.fc.weight = nn.Parameter(torch.ones(4, 4).as_subclass(kind))
    with pytest.raises(CompileError, match=f"fc.weight {words}"):
        pc(x)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_the_default_dtype_may_change_between_calls() -> None:
    eager, model, pc = pair()
    x = torch.randn(3, 4)
    for dtype in (torch.float64, torch.float32, torch.float64):
        with default_dtype(dtype):
            torch.testing.assert_close(trained(model, pc, x), trained(eager, eager, x))
            assert pc(x).dtype == dtype


def test_the_default_device_may_change_between_calls() -> None:
    eager, model, pc = pair()
    x = torch.randn(3, 4)
    with torch.device("meta"):
        with pytest.raises(RuntimeError):
            trained(eager, eager, x)
        with pytest.raises(CompileError, match="cpu and meta"):
            trained(model, pc, x)
    with torch.device("cpu"):
        torch.testing.assert_close(trained(model, pc, x), trained(eager, eager, x))


def test_a_forked_process_may_call_a_compiled_model() -> None:
    _, model, pc = pair()
    x = torch.randn(3, 4)
    expected, (reads, writes) = trained(model, pc, x), os.pipe()
    process = os.fork()
    if not process:
        try:
            agree = all(map(torch.equal, expected, trained(model, pc, x)))
            os.write(writes, b"agree" if agree else b"differ")
        finally:  # whatever happens, the tests that follow are the parent's
            os._exit(0)
    os.waitpid(process, 0)
    os.close(writes)
    assert os.read(reads, 10) == b"agree"


CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "infer": lambda pc, x: pc.infer((x,), target=torch.zeros(3, 4)),
    "settle": lambda pc, x: pc.settle((x,), target=torch.zeros(3, 4)),
    "a call": lambda pc, x: {"result": pc(x)},
    "loss": lambda pc, x: {"result": pc.loss(x, target=torch.zeros(3, 4))},
}


@pytest.mark.parametrize("name", ["infer", *(pytest.param(n, marks=pytest.mark.slow) for n in CALLS if n != "infer")])
def test_what_a_call_has_returned_stays_as_it_was(name: str) -> None:
    call = CALLS[name]
    x, model = torch.randn(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=nn.functional.mse_loss)
    found = call(pc, x)
    held = torch.utils._pytree.tree_leaves(found if isinstance(found, dict) else vars(found))
    tensors = [t for t in held if isinstance(t, Tensor)]
    before = [t.detach().clone() for t in tensors]
    call(pc, 3 * x)
    pc.loss(2 * x, target=torch.ones(3, 4)).backward()
    assert tensors
    torch.testing.assert_close([t.detach() for t in tensors], before, rtol=0, atol=0)


def test_a_model_without_hidden_values_has_nothing_to_trace() -> None:
    pc = pccompile.compile(nn.Linear(4, 4), (torch.randn(3, 4),), algorithm="strict", loss=nn.functional.mse_loss)
    with pytest.raises(CompileError, match="the model has no hidden values"):
        pc.infer((torch.randn(3, 4),), target=torch.zeros(3, 4))
