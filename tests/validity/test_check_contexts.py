"""The self-check, and all of compiling, under torch.no_grad and torch.inference_mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import Busy, mlp, seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Affine(nn.Module):
    """Has a buffer and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shift = nn.Linear(4, 4), torch.ones(4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale + self.shift * x


class Recalling(nn.Module):
    """Writes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(4, 4), torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.fc(x)) + self.last
        self.last = y.detach().mean(0)
        return y


OFF = pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])


@OFF
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [mlp, Busy, Affine, Recalling])
def test_it_is_done_where_gradients_are_off(context: Callable[[], Any], kind: Callable[[], Any], inside: bool) -> None:
    model, x = seeded(kind, torch.float32), torch.randn(6, 4)
    twin = copy.deepcopy(model)
    with context():
        example = torch.randn(6, 4) if inside else x
        pc = pccompile.compile(model, (example,))
        torch.manual_seed(1)
        here = pc(example)
    assert pc.checked.gradients == len(list(model.parameters()))
    with torch.no_grad():
        torch.manual_seed(1)
        torch.testing.assert_close(here, twin(example))
    for network in (pc, twin):
        torch.manual_seed(2)
        network(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@OFF
def test_the_first_call_of_a_form_may_be_made_where_gradients_are_off(context: Callable[[], Any]) -> None:
    model, x = seeded(Busy, torch.float32), torch.randn(6, 4)
    pc = pccompile.compile(model, (x,))
    training = pc.checked
    with context():
        torch.testing.assert_close(pc.eval()(x), model(x))
    assert pc.checked is not training
    assert pc.checked.gradients == 6
    assert pc(x).requires_grad


@OFF
def test_a_strict_program_is_compiled_where_gradients_are_off(context: Callable[[], Any]) -> None:
    model, x, y = seeded(mlp, torch.float32), torch.randn(6, 4), torch.randn(6, 3)
    with context():
        pc = pccompile.compile(model, (x,), algorithm="strict", loss=F.mse_loss)
        value = pc.loss(x, target=y)
    loss = pc.loss(x, target=y)
    loss.backward()
    assert loss.item() == value.item()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("context", [nullcontext, torch.inference_mode])
def test_parameters_of_inference_mode_are_refused(context: Callable[[], Any]) -> None:
    with torch.inference_mode():
        model = seeded(mlp, torch.float32)
    with context(), pytest.raises(CompileError, match=r"the parameter 0\.weight was made under torch.inference_mode"):
        pccompile.compile(model, (torch.randn(6, 4),))


def test_buffers_of_inference_mode_are_numbers_like_others() -> None:
    model, x = seeded(Affine, torch.float32), torch.randn(6, 4)
    with torch.inference_mode():
        model.scale = torch.full((4,), 2.0)
        model.shift = torch.full((4,), 3.0)
    pc = pccompile.compile(model, (x,))
    assert pc.checked.gradients == 2
    assert model.scale.is_inference()
    with torch.no_grad():
        torch.testing.assert_close(pc(x), model(x))
    for network in (model, pc):  # autograd takes them in neither
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            network(x).sum().backward()


def test_a_loss_that_is_a_module_stays_apart_from_the_model() -> None:
    model, x, y = seeded(mlp, torch.float32), torch.randn(6, 4), torch.randn(6, 3)
    before = [name for name, _ in model.named_modules()]
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=nn.MSELoss(reduction="sum"))
    assert [name for name, _ in model.named_modules()] == before
    torch.testing.assert_close(pc.loss(x, target=y), F.mse_loss(model(x), y, reduction="sum"))


def test_what_a_call_leaves_under_inference_mode_is_read_by_the_next_program() -> None:
    model, x = seeded(Recalling, torch.float32), torch.randn(6, 4)
    twin = copy.deepcopy(model)
    pc = pccompile.compile(model, (x,))
    with torch.inference_mode():
        torch.testing.assert_close(pc(x), twin(x))
    assert model.last.is_inference()
    for network in (pc.double(), twin.double()):  # another capture, which finds that tensor
        network(x.double()).square().sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
