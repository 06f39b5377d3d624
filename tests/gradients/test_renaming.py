"""No name in a model means anything: under any other names, the same numbers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers.cases import built, drawn
from helpers.renaming import parameters, renamed, shadowed, with_inputs, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import ZOO, Case

import pccompile
from pccompile.backends.netlist import NetlistOptions
from pccompile.pipeline import lay_out
from pccompile.report.circuit import verify_circuit

ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {"algorithm": "exact"},
    "closed form": {"algorithm": "fixed-prediction", "steps": 4, "rate": 0.5, "lowering": "closed-form"},
    "relaxed": {"algorithm": "fixed-prediction", "steps": 4, "rate": 0.5, "lowering": "relax"},
    "strict": {"algorithm": "strict", "steps": 3, "outside_loss": "linearise"},
}
FAST = ("mlp_tanh", "mlp_prelu", "siamese", "heads")
SLOW = (
    "norms",
    "attention",
    "gru",
    "graph_net",
    "paper_cnn",
    "encoder",
    "unrolled_lstm",
    "densenet",
    "mixture_of_experts",
    "dict_output",
    "stacked_lstm",
    "unet",
    "vit",
)
CIRCUITS = ("mlp_tanh", "mlp_prelu", "heads", "siamese", "paper_cnn")


class Branches(nn.Module):
    """Two outputs, one of which is read on, a buffer, a tied parameter, and a value that carries no error."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 3))
        self.register_buffer("shift", torch.linspace(-1, 1, 3))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.exp((x > 0).sum(1, keepdim=True))
        hidden = self.third(self.first(x) + self.shift) * self.scale
        return hidden, self.second(torch.cat([hidden, y], 0)).sum(0) * count.sum() * self.scale


def branches() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = Branches().double()
    return model, (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))


def model_of(name: str) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """A model, its inputs, and its loss."""
    if name == "branches":
        model, inputs = branches()
        return model, inputs, lambda outputs: outputs[0].sin().sum() + outputs[1].cos().sum()
    case: Case = ZOO[name]
    inputs, target = drawn(case, torch.float64)
    model = built(case.build, torch.float64)
    return model, tuple(x.detach() for x in inputs), lambda outputs: case.loss(outputs, target)


def gradients(module: nn.Module, model: nn.Module, inputs: tuple[Any, ...], loss: Any) -> list[Tensor]:
    own = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in inputs)
    model.zero_grad()
    torch.manual_seed(7)
    value = loss(module(*own))
    value.backward()
    tensors = [*parameters(model), *(x for x in own if x.is_floating_point())]
    return [value.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in tensors)]


@functools.cache
def expected(name: str, algorithm: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """The gradients of a model under its own names, and words that it could be confused by."""
    model, inputs, loss = model_of(name)
    pc = pccompile.compile(model, inputs, **ALGORITHMS[algorithm])
    found = gradients(pc, model, inputs, loss)
    values = [*pc.graph.graph.leaves, *pc.graph.names, *(n.name for n in pc.graph.graph.nodes)]
    return found, words(pc.source, values)


def check(name: str, algorithm: str, seed: int) -> None:
    """Rename everything in a model by words of its own program, and compare."""
    right, pool = expected(name, algorithm)
    model, inputs, loss = model_of(name)
    model, taken = rename(model, pool, len(inputs), seed)
    pc = pccompile.compile(model, inputs, **ALGORITHMS[algorithm])
    for mine, theirs in zip(gradients(pc, model, inputs, loss), right, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10), taken
    assert not shadowed(pc.source)


def rename(model: nn.Module, pool: tuple[str, ...], inputs: int, seed: int) -> tuple[nn.Module, list[str]]:
    """`model` under names of the pool, and the names that were tried."""
    generator = torch.Generator().manual_seed(seed)
    taken: list[str] = []

    def draw() -> str:
        taken.append(pool[int(torch.randint(len(pool), (), generator=generator))])
        return taken[-1]

    model = with_inputs(model, [draw() for _ in range(inputs)])
    return renamed(model, draw), taken


SETTINGS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
seeds = st.integers(0, 2**31)


@settings(max_examples=16, **SETTINGS)
@given(st.sampled_from(("branches", "branches", *FAST)), st.sampled_from(sorted(ALGORITHMS)), seeds)
def test_names_change_no_gradient(name: str, algorithm: str, seed: int) -> None:
    check(name, algorithm, seed)


@pytest.mark.slow
@settings(max_examples=300, **SETTINGS)
@given(st.sampled_from(("branches", *FAST, *SLOW)), st.sampled_from(sorted(ALGORITHMS)), seeds)
def test_names_change_no_gradient_of_many_models(name: str, algorithm: str, seed: int) -> None:
    check(name, algorithm, seed)


@functools.cache
def circuit_words(name: str) -> tuple[str, ...]:
    model, inputs, _ = model_of(name)
    spec = lay_out(model, inputs).netlist.spec
    own = {*spec.populations, *spec.tensors, *(p.name for p in spec.projections)}
    return (*expected(name, "exact")[1], *sorted(own))


def check_circuit(name: str, seed: int) -> None:
    model, inputs, _ = model_of(name)
    model, taken = rename(model, circuit_words(name), len(inputs), seed)
    report = verify_circuit(model, inputs, options=NetlistOptions(rate=1.0, ticks=64))
    assert report.passed, (taken, str(report))
    assert len(report.plasticity) == len(list(model.parameters()))


@settings(max_examples=10, **SETTINGS)
@given(st.sampled_from(CIRCUITS), seeds)
def test_names_change_no_circuit(name: str, seed: int) -> None:
    check_circuit(name, seed)


@pytest.mark.slow
@settings(max_examples=100, **SETTINGS)
@given(st.sampled_from(CIRCUITS), seeds)
def test_names_change_no_circuit_often(name: str, seed: int) -> None:
    check_circuit(name, seed)
