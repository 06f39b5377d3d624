"""Tensors that change behind a model's back: their form, and whether they learn, in every surrounding."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from helpers.models import half_squares
from torch import Tensor, nn

import pccompile
from pccompile.frontends.tensor_forms import CONTEXTS, TensorForms


class Windows(nn.Module):
    """Reads a parameter and a buffer at strides, and their diagonals."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("scale", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.as_strided((4, 2), (4, 1)) @ self.scale.as_strided((2, 3), (4, 1))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("scale", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight) * self.scale


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "parameter": lambda m: setattr(m.weight, "data", m.weight.data.t().contiguous().t()),
    "buffer": lambda m: setattr(m.scale, "data", m.scale.data.t().contiguous().t()),
    "both": lambda m: m.apply(lambda k: [setattr(t, "data", t.data.t()) for t in (*k.parameters(), *k.buffers())]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_strides_that_change_under_a_model_that_reads_at_strides(change: Callable[[nn.Module], object]) -> None:
    torch.manual_seed(0)
    model, x = Windows(), torch.randn(3, 4)
    pc = pccompile.compile(model, (x,))
    torch.testing.assert_close(pc(x), model(x))
    change(model)
    torch.testing.assert_close(pc(x), model(x))
    found, expected = (torch.autograd.grad(half_squares(m(x)), model.weight)[0] for m in (pc, model))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [1, 2])
def test_data_of_another_shape_in_a_buffer(width: int) -> None:
    torch.manual_seed(0)
    model, x = Plain(), torch.randn(3, 4)
    pc = pccompile.compile(model, (x,))
    pc(x)
    model.scale.data = torch.randn(width, 1, 1)
    found, expected = (torch.autograd.grad(half_squares(m(x)), model.weight)[0] for m in (pc, model))
    assert pc(x).shape == model(x).shape
    torch.testing.assert_close(found, expected)


def test_order_in_memory_alone_changes_no_result() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    pc = pccompile.compile(model, (x,))
    for _ in range(2):
        torch.testing.assert_close(pc(x), model(x))
        model.to(memory_format=torch.channels_last)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def tensors() -> tuple[nn.Parameter, Tensor]:
    return nn.Parameter(torch.randn(3, 3)), torch.randn(2)


def forms(*found: Tensor) -> TensorForms:
    """Their forms, and of all but the first whether they learn."""
    result = TensorForms()
    for i, tensor in enumerate(found):
        result.add(tensor, learning=i > 0)
    return result


@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_a_form_holds_in_every_surrounding(around: Callable[[], AbstractContextManager[object]]) -> None:
    weight, scale = tensors()
    state = forms(weight, scale, weight)
    assert state.hold()
    for _ in range(2 * CONTEXTS):
        with around():
            assert state.hold()
        assert state.hold()
    weight.data = weight.data.t()
    with around():
        assert not state.hold()
    assert not state.hold()


FORMS: dict[str, Callable[[Tensor], object]] = {
    "dtype": lambda t: setattr(t, "data", t.data.double()),
    "shape": lambda t: setattr(t, "data", t.data[:1]),
    "rank": lambda t: setattr(t, "data", t.data[None]),
    "strides": lambda t: setattr(t, "data", t.data.repeat_interleave(2, -1)[..., ::2]),
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_another_form_is_noticed_and_the_old_one_known_again(change: Callable[[Tensor], object], which: int) -> None:
    pair = tensors()
    state = forms(*pair)
    before = pair[which].data
    assert state.hold()
    assert state.hold()
    change(pair[which])
    assert not state.hold()
    pair[which].data = before
    assert state.hold()


def test_what_learns_matters_where_it_was_asked_for() -> None:
    weight, scale = tensors()
    state = forms(weight, scale)
    assert state.hold()
    weight.requires_grad_(False)
    assert state.hold()
    scale.requires_grad_()
    assert not state.hold()


def test_tensors_without_strides_hold_too() -> None:
    sparse = torch.eye(3).to_sparse()
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    weight, _ = tensors()
    state = forms(weight, sparse, nested)
    assert state.hold()
    assert state.hold()
    sparse.requires_grad_()
    assert not state.hold()


class FromMemory(nn.Module):
    """Reads two entries of its weight that are counted from where the weight's memory starts."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.w, self.first = nn.Parameter(torch.randn(6, dtype=torch.float64)), first
        self.held = [torch.randn(6, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        return self.w.as_strided((2,), (1,), self.first) * x * self.held[0].as_strided((2,), (1,), self.first)


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_a_parameter_that_starts_elsewhere_in_its_memory(algorithm: str) -> None:
    """As `.data =` a piece of a flat parameter makes it: each start has a program of its own."""
    x = torch.randn(2, dtype=torch.float64)
    model = FromMemory(3)
    pc = pccompile.compile(model, (x,), algorithm=algorithm, **({} if algorithm == "exact" else {"rate": 1.0}))
    flat = torch.randn(12, dtype=torch.float64)
    for start in (0, 2, 3, 0):
        model.w.data = flat[start : start + 6]
        model.held[0].data = flat[3 - start : 9 - start]
        found, expected = (torch.autograd.grad(m(x).sum(), model.w)[0] for m in (pc, model))
        torch.testing.assert_close(pc(x), model(x))
        torch.testing.assert_close(found, expected)
    model.w.data = flat[4:10]
    with pytest.raises(pccompile.CompileError, match="as_strided reads memory"):
        pc(x)


def test_an_input_that_starts_elsewhere_in_its_memory() -> None:
    """What is counted from where the memory of an input starts is read from there at each start."""

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.as_strided((2, 2), (1, 2), 10))

    model, memory = Counted(2, 2).double(), torch.randn(40, dtype=torch.float64)
    pc = pccompile.compile(model, (memory[5:15],))
    for start, length in ((5, 10), (8, 10), (10, 10), (6, 12), (0, 20), (5, 10)):
        x = memory[start : start + length]
        found, expected = (torch.autograd.grad(m(x).square().sum(), model.weight)[0] for m in (pc, model))
        torch.testing.assert_close(pc(x), model(x))
        torch.testing.assert_close(found, expected)
    with pytest.raises(pccompile.CompileError, match="input x: it lies in memory in another order"):
        pc(memory[2:12])
