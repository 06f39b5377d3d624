"""Strict inference needs the loss: one gradient, or a refusal in a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import Residual, mlp, seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError, PCModule

STRICT = {"algorithm": "strict", "steps": 20, "rate": 0.1}


def summed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


def strict(build: Callable[[], nn.Module] = mlp, **how: Any) -> tuple[PCModule, Tensor]:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pccompile.compile(seeded(build, torch.float32), (x,), **{**STRICT, **how}), x


def gradient(pc: PCModule, loss: Tensor) -> Tensor:
    pc.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in pc.parameters()])


@pytest.mark.parametrize("loss", [summed, F.cross_entropy, lambda o, t: summed(o, t) / 4])
def test_a_loss_of_the_outputs_is_refused_in_backward(loss: Callable[..., Tensor]) -> None:
    pc, x = strict(loss=summed)
    target = torch.randint(3, (6,))
    value = loss(pc(x), target)
    assert value.isfinite()
    with pytest.raises(CompileError, match="inference needs the loss") as caught:
        value.backward()
    assert "pc.loss(x, target=y)" in caught.value.problems[0].hint
    assert all(p.grad is None for p in pc.parameters())
    pc.loss(x, target=target).backward()


def test_prediction_needs_no_loss() -> None:
    pc, x = strict()
    assert torch.equal(pc(x), pc.__dict__["model"](x))
    assert float((pc(x).argmax(-1) == 0).float().mean()) >= 0
    with torch.no_grad():
        assert pc(x).shape == (6, 3)
    pc.requires_grad_(False)
    assert not pc(x).requires_grad


def test_the_other_way_round_is_an_option_by_name() -> None:
    pc, x = strict(outside_loss="linearise", loss=summed)
    y = torch.randint(3, (6,))
    a, b = gradient(pc, pc.loss(x, target=y)), gradient(pc, summed(pc(x), y))
    assert (a - b).norm() / a.norm() > 0.01
    assert "a loss of pc(x) clamps the outputs by its linearisation" in str(pc.summary())


def test_linearised_squared_error_is_the_squared_error() -> None:
    pc, x = strict(outside_loss="linearise")
    y = torch.randn(6, 3)
    torch.testing.assert_close(gradient(pc, half_squares(pc(x), y)), gradient(pc, pc.loss(x, target=y)))


@pytest.mark.parametrize("what", ["outside_loss", "on_divergence", "algorithm"])
def test_words_that_mean_nothing_are_refused(what: str) -> None:
    with pytest.raises(CompileError, match=f"unknown {what} 'perhaps'"):
        strict(**{what: "perhaps"})


def test_without_a_loss_it_is_said_that_it_is_the_squared_error() -> None:
    with pytest.warns(UserWarning, match="no loss was given: inference takes the squared error"):
        pc = pccompile.compile(seeded(mlp, torch.float32), (torch.randn(6, 4),), algorithm="strict")
    assert any("squared error" in n for n in pc.notes)
    assert "no loss was given" in str(pc.summary())
    assert "Inference takes the squared error" in pc.source.split('"""')[1]


@pytest.mark.parametrize("how", [{"loss": summed}, {"algorithm": "exact"}, {"algorithm": "fixed-prediction"}])
def test_it_is_not_said_where_it_is_not_so(how: dict[str, Any]) -> None:
    settings = {**STRICT, **how} if how.get("algorithm", "strict") == "strict" else how
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pc = pccompile.compile(seeded(mlp, torch.float32), (torch.randn(6, 4),), **settings)
    assert not any("squared error" in n for n in pc.notes)
    pc, x = strict(loss=summed)
    pc.loss(x, target=torch.randint(3, (6,)))
    assert "squared error" not in pc.source.split('"""')[1]


@pytest.mark.parametrize(
    ("loss", "mean"),
    [
        (F.cross_entropy, True),
        (summed, False),
        (lambda o, t: F.nll_loss(o.log_softmax(-1), t), True),
        (lambda o, t: summed(o, t) / 6, False),
    ],
)
def test_a_mean_over_the_batch_is_noted(loss: Callable[..., Tensor], mean: bool) -> None:
    pc, x = strict(loss=loss)
    pc.loss(x, target=torch.randint(3, (6,)))
    assert any("a mean over the batch" in n for n in pc.notes) == mean
    assert ("a mean over the batch" in str(pc.summary())) == mean


def test_under_torch_compile_strict_pieces_are_refused_too() -> None:
    torch._dynamo.reset()
    model, x = seeded(mlp, torch.float32), torch.randn(6, 4)
    program = torch.compile(model, backend="pccompile", options={"algorithm": "strict"})
    with pytest.raises(CompileError, match="inference needs the loss"):
        program(x).sum().backward()
    torch._dynamo.reset()
    options = {"algorithm": "strict", "outside_loss": "linearise"}
    torch.compile(model, backend="pccompile", options=options)(x).sum().backward()
    torch._dynamo.reset()
    assert all(p.grad is not None for p in model.parameters())


def test_verify_takes_a_loss_of_its_own_into_inference() -> None:
    pc, x = strict(Residual)
    report = pccompile.verify(pc, (x,), target=torch.randint(4, (6,)), loss=summed)
    assert report.passed
    assert any("free energy over 20 steps" in c.what for c in report.checks)


class _Branching(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.sum() if output.sum() > 0 else (output - target).square().sum()


@pytest.mark.parametrize(
    "loss, reader",
    [(lambda o, t: o.sum() if torch.any(o > 0) else t.sum(), "Python code"), (_Branching(), "_Branching")],
)
def test_a_loss_that_decides_by_numbers_is_refused_as_the_loss(loss: Any, reader: str) -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    with pytest.raises(
        CompileError, match=rf"the loss: {reader} reads a tensor's value.* at test_strict_loss\.py"
    ) as e:
        pccompile.compile(nn.Linear(3, 2), (x,), loss=loss).loss(x, target=y)
    assert "_LossModule" not in str(e.value)
    assert "take it of pc(x)" in str(e.value)
