"""jit=True: the same gradients as without, whatever changes between calls; refused where it cannot be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algorithms.nets import apart, problem
from algorithms.programs import captured, gradients, program_of
from torch import Tensor, nn
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

import pccompile
from pccompile.backends.torch import emit
from pccompile.diagnostics import CompileError


class Normalised(nn.Module):
    """Batch norm and dropout: other functions in eval mode, and buffers that a call moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop, self.b = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(torch.tanh(self.norm(self.a(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def summed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


class Pair:
    """A model compiled with and without jit."""

    def __init__(self, model: nn.Module, algorithm: str = "strict", **settings: Any) -> None:
        torch.manual_seed(0)
        self.models = [model, copy.deepcopy(model)]
        dtype = next(model.parameters()).dtype
        x = torch.randn(4, 5, dtype=dtype)
        self.both = [
            pccompile.compile(m, (x,), algorithm=algorithm, loss=summed, jit=jit, **settings)
            for m, jit in zip(self.models, (True, False), strict=True)
        ]

    def agree(self, batch: int = 4, dtype: torch.dtype = torch.float64) -> None:
        x, y = torch.randn(batch, 5, dtype=dtype), torch.randint(3, (batch,))
        losses, gradients = [], []
        for pc in self.both:
            pc.zero_grad()
            torch.manual_seed(1)
            loss = pc.loss(x, target=y)
            (2 * loss).backward()
            losses.append(loss.detach())
            gradients.append([p.grad for p in pc.parameters()])
        torch.testing.assert_close(*losses)
        tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, **tolerance)
            assert float(expected.abs().max()) > 0
        for found, expected in zip(*(m.buffers() for m in self.models), strict=True):
            torch.testing.assert_close(found, expected)

    def change(self) -> None:
        """An optimizer step, which writes into the parameters."""
        for model in self.models:
            torch.optim.SGD(model.parameters(), 0.1).step()


def test_gradients_are_those_without_jit_while_parameters_and_batches_change() -> None:
    pair = Pair(small().double(), steps=2)
    pair.agree()
    pair.change()
    pair.agree()
    pair.agree(batch=7)
    with torch.no_grad():
        for model in pair.models:
            model[0].weight = nn.Parameter(torch.full((6, 5), 0.1, dtype=torch.float64))
    pair.agree(batch=7)


FORMS: dict[str, dict[str, Any]] = {
    **{s: {"algorithm": "strict", "stepper": s} for s in ("euler", "heun", "adam")},
    "tolerance": {"algorithm": "strict", "tolerance": 1e-2},
    "alm": {"algorithm": "alm", "penalty": 2.0},
    "relax": {"algorithm": "fixed-prediction", "lowering": "relax"},
    "incremental": {"algorithm": "incremental"},
}


@pytest.mark.parametrize("net", ["gated", pytest.param("transformer", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", FORMS)
def test_what_is_compiled_computes_the_same(case: str, net: str) -> None:
    """The file for a compiler writes over nothing; here it runs as it is."""
    p = problem(net)
    program = program_of(captured(p), **{"steps": 9, **FORMS[case]})
    text = emit(program, functional=True).text
    assert not any(f".{name}_(" in text.split("def learn")[0] for name in ("add", "sub", "lerp", "addmm"))
    found, expected = (gradients(program, p, 9, text=t) for t in (text, ""))
    near = 1e-9 if case == "adam" else 1e-12  # Adam divides what rounding leaves of a gradient of zero by its size
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=near)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["gated", "dag", "cnn"])
def test_strict_inference_on_networks_with_products_and_batch_norm(net: str) -> None:
    p = problem(net)
    found, expected = (p.gradients("strict", steps=8, jit=jit) for jit in (True, False))
    assert apart(found, expected) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "strict", "alm", "nudged", "langevin", "zil"])
def test_every_algorithm_but_incremental_takes_it(algorithm: str) -> None:
    how = {"exact": {}, "zil": {}, "fixed-prediction": {"steps": 4}}.get(algorithm, {"steps": 3})
    how |= {"burn_in": 1} if algorithm == "langevin" else {}
    Pair(mlp().double(), algorithm, **how).agree()


@pytest.mark.slow
def test_modes_and_types_are_told_apart() -> None:
    pair = Pair(Normalised().double(), "exact")
    pair.agree()
    for pc in pair.both:
        pc.eval()
    pair.agree()
    for pc in pair.both:
        pc.train()
    pair.agree(batch=6)
    for model in pair.models:
        model.float()
    pair.agree(dtype=torch.float32)


@pytest.mark.slow
def test_a_loss_outside_and_a_copy() -> None:
    torch.manual_seed(0)
    model, x, y = mlp().double(), torch.randn(4, 5, dtype=torch.float64), torch.randint(3, (4,))
    pc = pccompile.compile(model, (x,), jit=True)
    for module in (pc, copy.deepcopy(pc)):
        module.zero_grad()
        summed(module(x), y).backward()
        expected = torch.autograd.grad(summed(model(x), y), [*model.parameters()])
        for p, e in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, e)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(CompileError, match=r"jit=True needs a C\+\+ compiler") as e:
        pccompile.compile(mlp(), (torch.randn(4, 5),), jit=True)
    assert "CXX" in str(e.value.problems[0].hint)
    pccompile.compile(mlp(), (torch.randn(4, 5),))


def test_parameters_that_move_inside_inference_are_refused() -> None:
    with pytest.raises(CompileError, match="incremental hands its gradients to an optimizer"):
        pccompile.compile(mlp(), (torch.randn(4, 5),), algorithm="incremental", loss=summed, jit=True)
    with pytest.raises(CompileError, match="no jit"):
        pccompile.compile(mlp(), (torch.randn(4, 5),), backend="netlist", jit=True)
