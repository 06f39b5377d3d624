"""Random networks: fan-out, skips, products, broadcasting, ties, views, in-place writes, detached and unread values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import BINARY, UNARY, Recipe, Step, distance, half_squares
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pccompile
from pccompile.algorithms.law import path_lengths

EXAMPLES = settings(
    max_examples=16, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
)


@st.composite
def recipes(draw: st.DrawFn, most: int = 8) -> tuple[list[Step], list[int]]:
    """Steps that read earlier values, recent ones above all, and the positions of values that are outputs too."""
    steps: list[Step] = []
    kinds = st.sampled_from(["layer", "layer", "tied", "scale", *UNARY, *BINARY])
    for i in range(draw(st.integers(1, most))):
        at = st.integers(0, i) | st.integers(max(0, i - 2), i)
        kind = draw(kinds)
        steps.append((kind, draw(at), *([draw(at)] if kind in BINARY else [])))
    outputs = draw(st.lists(st.integers(0, len(steps) - 1), max_size=2))
    return steps, outputs


def build(recipe: tuple[list[Step], list[int]]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Recipe(*recipe).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)


def both(module: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Gradients of parameters and of the input."""
    loss = half_squares(module(x))
    named = {**dict(module.named_parameters()), "x": x}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@EXAMPLES
@given(recipes())
def test_exact_is_backpropagation(recipe: tuple[list[Step], list[int]]) -> None:
    module, x = build(recipe)
    pc = pccompile.compile(module, (x,))
    assert distance(both(pc, x), both(module, x)) < 1e-10


@settings(EXAMPLES, max_examples=8)
@given(recipes(6), st.sampled_from([(3, 0.5), (9, 0.3), (12, 0.8)]))
def test_the_closed_form_is_the_relaxation(recipe: tuple[list[Step], list[int]], schedule: tuple[int, float]) -> None:
    module, x = build(recipe)
    how: dict[str, Any] = {"algorithm": "fixed-prediction", "steps": schedule[0], "rate": schedule[1]}
    closed, relaxed = (pccompile.compile(module, (x,), lowering=name, **how) for name in ("closed-form", "relax"))
    assert distance(both(closed, x), both(relaxed, x)) < 1e-10


@settings(EXAMPLES, max_examples=8)
@given(recipes(6))
def test_relaxing_along_the_longest_path_is_backpropagation(recipe: tuple[list[Step], list[int]]) -> None:
    module, x = build(recipe)
    how: dict[str, Any] = {"algorithm": "fixed-prediction", "rate": 1.0, "lowering": "relax"}
    longest = max(max(ks) for ks in path_lengths(pccompile.compile(module, (x,), **how).graph).values() if ks)
    pc = pccompile.compile(module, (x,), steps=longest, **how)
    assert distance(both(pc, x), both(module, x)) < 1e-10


@pytest.mark.parametrize("kind", [*UNARY, *BINARY, "tied", "scale"])
def test_every_step_of_the_grammar_twice(kind: str) -> None:
    """Each reads the layer before it and one value further back, and is read twice."""
    two = kind in BINARY
    steps = [("layer", 0), (kind, 1, *([0] if two else [])), (kind, 2, *([1] if two else [])), ("add", 3, 2)]
    module, x = build((steps, [1]))
    assert distance(both(pccompile.compile(module, (x,)), x), both(module, x)) < 1e-11
