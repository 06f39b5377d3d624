"""Programs of thousands of operations: no recursion over uses, and the gradients of autograd."""

from __future__ import annotations

import cProfile
import inspect
import pstats
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile.frontends.exported import Imported
from pccompile.ir import Ref, map_refs
from pccompile.pipeline import Compiled, Options, compile_imported, import_model
from pccompile.runtime.loaded_program import load


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.9, 1.1, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.w)


X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


def unrolled(times: int, tied: bool) -> Imported:
    """The step again and again, with one parameter or as many: what a loop in a model is captured as."""
    imported = import_model(Step(), (X,))
    graph, (param,) = imported.graph, imported.graph.params
    params = [param if tied else f"{param}_{i}" for i in range(times)]
    nodes, value = [], "x"
    for i in range(times):
        new = {"x": value, param: params[i], **{n.name: f"{n.name}_{i}" for n in graph.nodes}}
        for n in graph.nodes:
            args = {k: map_refs(a, lambda r, new=new: Ref(new[r])) for k, a in n.args.items()}
            nodes.append(replace(n, name=new[n.name], args=args))
        value = nodes[-1].name
    long = replace(
        graph,
        params=dict.fromkeys(params, graph.params[param]),
        origin={p: p for p in params},
        nodes=tuple(nodes),
        outputs=(value,),
        wanted=frozenset(params),
    )
    return replace(imported, graph=long, outputs=(Ref(value),))


def compiled(times: int, tied: bool, algorithm: str, **settings: Any) -> Compiled:
    return compile_imported(unrolled(times, tied), Options(algorithm, settings.pop("granularity", None), settings))


def gradients(program: Compiled) -> dict[str, Tensor]:
    """What the generated file says for an output error of −1."""
    weights = Step().w.detach()
    params = dict.fromkeys(program.graph.origin.values(), weights)
    scope = load(program.source.text, "long")
    _, context = scope["predict"](params, {}, {"x": X})
    result: dict[str, Tensor] = scope["infer_and_learn"](params, context, [-torch.ones_like(X)])
    return result


def expected(times: int, tied: bool) -> list[Tensor]:
    step, value = Step(), X
    weights = [step.w] * times if tied else [step.w.detach().clone().requires_grad_() for _ in range(times)]
    for w in weights:
        value = torch.tanh(value * w)
    return list(torch.autograd.grad(value.sum(), weights[:1] if tied else weights))


@pytest.mark.quick(3)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "algorithm, settings, times",
    [
        ("exact", {}, 1100),
        ("exact", {"granularity": "layer"}, 600),
        ("fixed-prediction", {"lowering": "relax", "steps": 2, "rate": 1.0}, 600),
    ],
)
def test_long_programs_compile(algorithm: str, settings: dict[str, Any], times: int, tied: bool) -> None:
    found = gradients(compiled(times, tied, algorithm, **settings))
    for mine, theirs in zip(found.values(), expected(times, tied), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_long_programs_compile_in_near_linear_steps(tied: bool) -> None:
    calls = []
    for times in (400, 1600):
        profile = cProfile.Profile()
        profile.runcall(compiled, times, tied, "exact")
        calls.append(pstats.Stats(profile).total_calls)
    assert calls[1] < 4 * 1.2 * calls[0]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_ten_thousand_operations(tied: bool) -> None:
    found = gradients(compiled(5000, tied, "exact"))
    for mine, theirs in zip(found.values(), expected(5000, tied), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


class SharedViews(nn.Module):
    """One weight that is read three times through as long a chain of views."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.w, self.length = nn.Parameter(torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)), length

    def forward(self, x: Tensor) -> Tensor:
        def chain(w: Tensor) -> Tensor:
            for _ in range(self.length):
                w = w.unsqueeze(0).expand(1, 4, 4).reshape(4, 4).transpose(0, 1)
            return w

        return (x @ chain(self.w) + (x * 2) @ chain(self.w) + x.tanh() @ chain(self.w)).sin()


def test_a_long_chain_that_messages_share_needs_no_deep_recursion() -> None:
    model, x = SharedViews(40), torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
    model(x).sum().backward()
    expected, model.w.grad = model.w.grad, None
    limit = sys.getrecursionlimit()
    pc = pccompile.compile(model, (x,), check=False)  # loads what is imported late
    deep = import_model(SharedViews(240), (x,))
    sys.setrecursionlimit(len(inspect.stack(0)) + 400)
    try:
        compile_imported(deep, Options())
    finally:
        sys.setrecursionlimit(limit)
    pc(x).sum().backward()
    torch.testing.assert_close(model.w.grad, expected, rtol=1e-9, atol=1e-9)
