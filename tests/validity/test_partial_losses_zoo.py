"""Every model of the zoo with values from its inside among its results, of which a loss uses some."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from zoo import TRAPS, ZOO, Case
from zoo.test_zoo import drawn

import pccompile

CASES = [c for c in (ZOO | TRAPS).values() if c.exported and not (c.slow or c.refused or c.oracle or c.random)]
ALONE = {
    "data_dependent_if",
    "data_dependent_while",
    "keyword_name",
    "no_parameters",
    "overlapping_pooling",
    "packed_lstm",
    "vmap",
}
"""Models whose exported graph does not run as a module of its own, or has no parameter."""


def with_results(case: Case, count: int = 5) -> tuple[fx.GraphModule, list[Any], int]:
    """A model as its exported graph, in which some hidden values are results too, with its arguments."""
    torch.manual_seed(0)
    module, inputs, _ = drawn(case, case.build, torch.float64)
    graph = torch.export.export(module, inputs).module().graph
    output = next(n for n in graph.nodes if n.op == "output")
    results = [n for n in pytree.tree_leaves(output.args[0]) if isinstance(n, fx.Node)]
    hidden = [n for n in graph.nodes if n.op == "call_function" and _floating(n) and n.users]
    output.args = ((*results, *random.Random(case.name).sample(hidden, min(count, len(hidden)))),)
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())
    places = sum(n.op == "placeholder" for n in graph.nodes)
    flat = pytree.tree_leaves(inputs)
    return fx.GraphModule(graph.owning_module, graph), flat[:places], len(output.args[0])


def _floating(n: fx.Node) -> bool:
    value = n.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def gradients(called: Any, model: Any, inputs: list[Any], used: list[int]) -> dict[str, Tensor | None]:
    model.zero_grad()
    torch.manual_seed(5)
    results = called(*copy.deepcopy(inputs))
    sum((results[i].sin() * (i + 1.3)).sum() for i in used).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.quick(3)
@pytest.mark.parametrize("granularity", ["op", "layer"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.name not in ALONE])
def test_hidden_values_among_the_results(case: Case, granularity: str) -> None:
    model, inputs, count = with_results(case)
    original = copy.deepcopy(model)
    learning = [i for i, r in enumerate(original(*copy.deepcopy(inputs))) if r.requires_grad]
    draw = random.Random(case.name)
    for size in sorted({1, len(learning) // 2 or 1, len(learning)}):
        used = draw.sample(learning, size)
        start = copy.deepcopy(model)
        pc = pccompile.compile(copy.deepcopy(model), tuple(inputs), granularity=granularity)
        found, expected = gradients(pc, pc.model, inputs, used), gradients(start, start, inputs, used)
        for name, value in expected.items():
            if (
                value is not None or found[name] is not None
            ):  # a branch that was not taken has zeros here and None there
                zero = torch.zeros_like(start.get_parameter(name))
                one, other = (zero if g is None else g for g in (found[name], value))
                assert torch.allclose(one, other, rtol=1e-8, atol=1e-9, equal_nan=True), (
                    f"{name}, by results {used} of {count}"
                )
