"""What the mathematics promises of each algorithm."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import (
    Gradients,
    Residual,
    Transformer,
    cosine,
    distance,
    gradients,
    half_squares,
    mlp,
    random_recipe,
    seeded,
)
from helpers.tiny import TwoLayers
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import pccompile
from laws.references import by_path_length, descend, survival
from pccompile import CompileError, PCModule
from pccompile.algorithms.law import PathLengths, gradient_error, lengths_in, path_lengths, steps_for
from pccompile.backends.torch import emit
from pccompile.ir import Graph, Output, PCGraph, Ref, TensorType, Vertex
from pccompile.ir.law import weight
from pccompile.pipeline import Options, schedule
from pccompile.runtime.loaded_program import load

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (5, 4)),
    "residual": (Residual, (5, 4)),
    "transformer": (Transformer, (2, 3, 4)),
    **{f"random-{seed}": (partial(random_recipe, seed), (5, 3)) for seed in range(4)},
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
GRANULARITIES = pytest.mark.parametrize("granularity", ["op", "layer"])


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[name]
    return seeded(make), torch.randn(shape, dtype=torch.float64)


def pc_gradients(model: nn.Module, x: Tensor, **how: Any) -> Gradients:
    pc = pccompile.compile(model, (x,), outside_loss="linearise", **how)
    return gradients(pc, half_squares(pc(x)))


@cache
def compiled(name: str, granularity: str) -> tuple[PCModule, Tensor, Gradients]:
    """A compiled model, its input, and its gradients by autograd."""
    model, x = prepared(name)
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", granularity=granularity)
    return pc, x, gradients(model, half_squares(model(x)))


def fixed_prediction(name: str, granularity: str, **settings: Any) -> Gradients:
    """The gradients of a fixed-prediction program, as its file returns them."""
    pc, x, wanted = compiled(name, granularity)
    source = emit(schedule(pc.graph, Options("fixed-prediction", None, settings)))
    params, buffers = pc.tables(pc.prepare((x,)))
    zeros = [torch.zeros_like(y) for y in pytree.tree_leaves(pc(x))]
    _, found = load(source.text, name)["step"](params, buffers, {"x": x} | {"input": x}, zeros)
    return {k: found.get(k) for k in wanted}


# exact


@EVERY_MODEL
@GRANULARITIES
def test_exact_is_backpropagation(name: str, granularity: str) -> None:
    model, x = prepared(name)
    found = pc_gradients(model, x, granularity=granularity)
    assert distance(found, gradients(model, half_squares(model(x)))) < 1e-12


# fixed prediction


@EVERY_MODEL
@GRANULARITIES
def test_at_rate_1_as_many_steps_as_the_longest_path_are_exact(name: str, granularity: str) -> None:
    pc, _, wanted = compiled(name, granularity)
    longest = max(max(ks) for ks in path_lengths(pc.graph).values())
    settled = fixed_prediction(name, granularity, steps=longest, rate=1.0, lowering="relax")
    too_few = fixed_prediction(name, granularity, steps=longest - 1, rate=1.0, lowering="relax")
    assert distance(settled, wanted) < 1e-12
    assert distance(too_few, wanted) > 1e-6


def weighted(weights: list[float], parts: list[Gradients]) -> Gradients:
    """The weighted sum of sets of gradients."""
    return {name: sum(w * part[name] for w, part in zip(weights, parts, strict=True)) for name in parts[0]}


def reached(found: Gradients) -> Gradients:
    """Without the parameters that no output reaches."""
    return {name: g for name, g in found.items() if g is not None}


SCHEDULES = [(1, 0.5), (7, 0.2), (12, 1.3), (30, 0.1), (5, 1.9)]


@EVERY_MODEL
@pytest.mark.parametrize("lowering", ["relax", "closed-form", pytest.param("combinations", marks=pytest.mark.slow)])
def test_after_t_steps_a_path_of_k_edges_carries_its_binomial_weight(name: str, lowering: str) -> None:
    pc, x, _ = compiled(name, "layer")
    parts = by_path_length(pc, half_squares, x)
    for steps, rate in SCHEDULES:
        weights = [survival(steps, rate, k) for k in range(len(parts))]
        law = weighted(weights, parts)
        found = fixed_prediction(name, "layer", steps=steps, rate=rate, lowering=lowering)
        assert distance(reached(found), law, floor=1e-3) < 1e-9, (steps, rate)


def test_all_path_lengths_together_are_backpropagation() -> None:
    """The reference of the law, held against autograd."""
    pc, x, wanted = compiled("residual", "op")
    parts = by_path_length(pc, half_squares, x)
    assert distance(weighted([1.0] * len(parts), parts), wanted) < 1e-9


@EVERY_MODEL
@pytest.mark.parametrize("steps, rate", [(9, 0.3), (40, 1.4)])
def test_the_closed_form_is_the_relaxation(name: str, steps: int, rate: float) -> None:
    relaxed = fixed_prediction(name, "op", steps=steps, rate=rate, lowering="relax")
    assert distance(fixed_prediction(name, "op", steps=steps, rate=rate, lowering="closed-form"), relaxed) < 1e-10


@pytest.mark.parametrize("lowering", ["relax", "closed-form"])
def test_no_steps_leave_the_hidden_layers_without_a_gradient(lowering: str) -> None:
    model, x = seeded(TwoLayers), torch.randn(3, 4, dtype=torch.float64)
    found = pc_gradients(model, x, algorithm="fixed-prediction", steps=0, lowering=lowering)
    wanted = gradients(model, half_squares(model(x)))
    assert distance({"w": found["readout.weight"]}, {"w": wanted["readout.weight"]}) < 1e-12
    assert not found["hidden.weight"].any()


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9, 1.0, 1.2, 1.8])
@pytest.mark.parametrize("edges", [0, 1, 4, 11])
def test_the_weight_is_the_binomial_survival_function(rate: float, edges: int) -> None:
    for steps in (0, 1, 3, 11, 25, 60):
        assert weight(steps, rate, edges) == pytest.approx(survival(steps, rate, edges), rel=1e-9, abs=1e-9)


def test_the_papers_setting_reaches_short_paths_only() -> None:
    assert [round(weight(100, 0.1, k), 3) for k in (5, 10, 20)] == [0.976, 0.549, 0.002]


def test_the_predicted_gradient_error_is_the_measured_one_on_a_chain() -> None:
    model, x = prepared("mlp")
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", steps=12, rate=0.2)
    found, wanted = gradients(pc, half_squares(pc(x))), gradients(model, half_squares(model(x)))
    predicted = gradient_error(pc.graph, 12, 0.2)
    assert distance(found, wanted) == pytest.approx(predicted, rel=1e-9)
    printed = re.search(r"gradient error (\S+)", pc.compiled.program.facts[0])
    assert printed
    assert float(printed[1]) == pytest.approx(predicted, rel=5e-3)


def test_the_predicted_gradient_error_is_a_bound_for_each_path_of_a_branching_graph() -> None:
    model, x = prepared("residual")
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", steps=20, rate=0.5)
    parts = by_path_length(pc, half_squares, x)
    bound = gradient_error(pc.graph, 20, 0.5)
    assert all(abs(1 - survival(20, 0.5, k)) <= bound + 1e-12 for k in range(len(parts)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("tolerance", [0.3, 1e-3, 1e-8])
def test_a_tolerance_gets_the_fewest_steps_that_reach_it(rate: float, tolerance: float) -> None:
    model, x = prepared("mlp")
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", rate=rate, tolerance=tolerance)
    steps = steps_for(pc.graph, rate, tolerance)
    assert gradient_error(pc.graph, steps, rate) <= tolerance
    assert all(gradient_error(pc.graph, fewer, rate) > tolerance for fewer in range(steps))
    measured = distance(gradients(pc, half_squares(pc(x))), gradients(model, half_squares(model(x))))
    assert measured <= tolerance + 1e-12


@pytest.mark.parametrize("rate", [0.4, 1.3, 1.7])
def test_the_fewest_steps_are_found_on_a_deep_chain(rate: float) -> None:
    """Above rate 1 the error first grows, so that it is not monotone in the number of steps."""
    deep = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    graph = pccompile.compile(deep, (torch.randn(2, 2),), algorithm="fixed-prediction").graph
    for tolerance in (0.5, 1e-2, 1e-6):
        steps = steps_for(graph, rate, tolerance)
        assert gradient_error(graph, steps, rate) <= tolerance
        assert all(gradient_error(graph, fewer, rate) > tolerance for fewer in range(steps))


@pytest.mark.parametrize("rate", [0.0, -0.1, 2.0, 2.5, math.nan])
def test_a_rate_that_does_not_converge_is_refused(rate: float) -> None:
    with pytest.raises(CompileError, match=r"rate is .*\n.*converges for rates"):
        pccompile.compile(mlp(), (torch.randn(2, 4),), algorithm="fixed-prediction", rate=rate)


def test_path_lengths_are_those_of_the_drawing() -> None:
    """x → a·tanh → (+ b·gelu) → (+ c·sigmoid(sin)) → d"""
    model, x = prepared("residual")
    lengths = path_lengths(pccompile.compile(model, (x,), granularity="layer").graph)
    assert max(lengths.values(), key=len) == (3, 4, 5, 6)
    assert next(iter(lengths.values())) == (0,)


def test_ten_thousand_layers_with_shortcuts_fit_in_memory() -> None:
    """Their 50 million path lengths are counted, and the steps that they need are found."""
    type_, leaves = TensorType((1,)), {"x": TensorType((1,))}
    names = [f"v{i}" for i in range(10_000)]
    parents = {n: tuple(names[max(i - 2, 0) : i]) for i, n in enumerate(names)}
    vertices = [
        Vertex(n, above, (), Ref("x"), type_, messages=dict.fromkeys(above, Ref("x"))) for n, above in parents.items()
    ]
    graph = Graph(leaves, {}, {}, (), ("x",))
    pc = PCGraph(graph, tuple(vertices), (), (Output("x", names[-1]),))
    start = time.process_time()
    paths = PathLengths(pc)
    assert paths.longest == 9_999
    assert lengths_in(paths.sets["v9990"]) == (5, 6, 7, 8, 9)
    assert paths.parts(9_999) == sum(i - (i + 1) // 2 + 1 for i in range(10_000))
    assert 0.0 < gradient_error(pc, steps_for(pc, 0.5, 1e-3), 0.5) <= 1e-3
    assert time.process_time() - start < 20


# strict


@pytest.mark.parametrize("name", MODELS)
@GRANULARITIES
def test_strict_descends_the_free_energy(name: str, granularity: str) -> None:
    model, x = prepared(name)
    pc = strict(model, x, steps=8, rate=0.15, granularity=granularity)
    y = pytree.tree_leaves(pytree.tree_map(torch.randn_like, model(x)))
    wanted, energies = descend(pc, x, y, 8, 0.15)
    assert distance(gradients(pc, pc.loss(x, target=y)), wanted) < 1e-10
    torch.testing.assert_close(pc.infer((x,), target=y).free_energy.tolist(), energies)


def strict(model: nn.Module, x: Tensor, **how: Any) -> PCModule:
    return pccompile.compile(model, (x,), algorithm="strict", **how)


@EVERY_MODEL
def test_the_free_energy_never_rises_at_a_small_rate(name: str) -> None:
    model, x = prepared(name)
    pc = strict(model, x, loss=half_squares)
    targets = pytree.tree_map(torch.randn_like, model(x))
    trace = pc.infer((x,), target=targets, steps=60, rate=0.02)
    energy = trace.free_energy
    assert (energy.diff() <= 1e-12 * energy[0]).all()
    assert energy[-1] < 0.99 * energy[0]


def test_inference_starts_at_the_feedforward_state() -> None:
    model, x = prepared("mlp")
    trace = strict(model, x).infer((x,), target=torch.zeros(5, 3, dtype=torch.float64), steps=3)
    hidden = list(trace.errors.values())[:-1]
    assert not any(e[0].any() for e in hidden)
    assert all(e[-1].any() for e in hidden)


def test_without_steps_strict_learns_at_the_outputs_only() -> None:
    model, x = seeded(TwoLayers), torch.randn(3, 4, dtype=torch.float64)
    found, wanted = pc_gradients(model, x, algorithm="strict", steps=0), gradients(model, half_squares(model(x)))
    assert distance({"w": found["readout.weight"]}, {"w": wanted["readout.weight"]}) < 1e-12
    assert not found["hidden.weight"].any()


def scaled(scale: float, output: Any, target: Any) -> Tensor:
    return scale * half_squares(output, target)


def test_strict_tends_to_backpropagation_as_the_loss_shrinks_and_differs_otherwise() -> None:
    model, x = prepared("residual")
    y = torch.randn(5, 4, dtype=torch.float64)
    wanted = gradients(model, half_squares(model(x), y))
    cosines = []
    for scale in (1e-4, 1e-2, 1.0):
        pc = strict(model, x, loss=partial(scaled, scale), steps=600, rate=0.1)
        cosines.append(cosine(gradients(pc, pc.loss(x, target=y)), wanted))
    assert cosines[0] > 0.999
    assert cosines[2] < 0.99
    assert sorted(cosines, reverse=True) == cosines


def chain() -> nn.Module:
    return nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_strict_on_a_linear_chain_is_the_linear_system(steps: int) -> None:
    """v(T) = v* + (1 − η H)^T (v(0) − v*), H v* = b, for F = ½‖v₁ − W₁x‖² + ½‖v₂ − W₂v₁‖² + ½‖y − W₃v₂‖²."""
    model, rate = seeded(chain), 0.2
    x, y = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    w1, w2, w3 = (p.detach().numpy() for p in model.parameters())
    one = np.eye(3)
    h = np.block([[one + w2.T @ w2, -w2.T], [-w2, one + w3.T @ w3]])
    b = np.concatenate([w1 @ x[0].numpy(), w3.T @ y[0].numpy()])
    start = np.concatenate([w1 @ x[0].numpy(), w2 @ w1 @ x[0].numpy()])
    rest = np.linalg.solve(h, b)
    v = rest + np.linalg.matrix_power(np.eye(6) - rate * h, steps) @ (start - rest)
    v1, v2 = v[:3], v[3:]
    errors = (v1 - w1 @ x[0].numpy(), v2 - w2 @ v1, y[0].numpy() - w3 @ v2)
    below = (x[0].numpy(), v1, v2)
    pc = strict(model, x, steps=steps, rate=rate)
    found = gradients(pc, pc.loss(x, target=y))
    for (name, g), error, value in zip(found.items(), errors, below, strict=True):
        np.testing.assert_allclose(g, -np.outer(error, value), rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_sample_relaxes_the_same_in_any_batch() -> None:
    model, x = prepared("mlp")
    y = torch.randn(5, 3, dtype=torch.float64)
    pc = strict(model, x, steps=25)
    together = pc.infer((x,), target=y)
    for i in range(5):
        alone = pc.infer((x[i : i + 1],), target=y[i : i + 1])
        for name, errors in together.errors.items():
            torch.testing.assert_close(alone.errors[name][:, 0], errors[:, i], rtol=1e-10, atol=1e-13)


def test_gradients_of_a_summed_loss_add_up_over_samples() -> None:
    model, x = prepared("mlp")
    y = torch.randn(5, 3, dtype=torch.float64)
    pc = strict(model, x, steps=25)
    together = gradients(pc, pc.loss(x, target=y))
    alone = [gradients(pc, pc.loss(x[i : i + 1], target=y[i : i + 1])) for i in range(5)]
    assert distance({k: sum(g[k] for g in alone) for k in together}, together) < 1e-10


def test_strict_depends_on_the_granularity_and_exact_does_not() -> None:
    model, x = prepared("mlp")
    for algorithm, equal in (("exact", True), ("strict", False)):
        found = [pc_gradients(copy.deepcopy(model), x, algorithm=algorithm, granularity=g) for g in ("op", "layer")]
        assert (distance(*found) < 1e-10) is equal


def test_a_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(CompileError, match=r"rate is 0\.0"):
        strict(mlp(), torch.randn(2, 4), rate=0.0)
