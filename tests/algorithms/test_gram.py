"""Values that are moved behind the weights that read them: the same dynamics, one product a turn less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from algorithms.nets import Problem, problem
from algorithms.programs import captured, gradients, program_of
from pccompile.backends.torch import emit


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))


def text_of(p: Problem, rows: int, **settings: Any) -> str:
    program = program_of(captured(p), **{"algorithm": "strict", "steps": 12, **settings})
    return emit(program, functional=True, lengths=dict.fromkeys(program.pc.graph.dims, rows)).text


@pytest.mark.parametrize("settings", [{}, {"algorithm": "nudged"}, {"rate": 0.3}], ids=["strict", "nudged", "rate"])
def test_the_values_are_the_same_after_any_number_of_steps(settings: dict[str, Any]) -> None:
    p = Problem(wide, (8, 5))
    program = program_of(captured(p), **{"algorithm": "strict", "steps": 12, **settings})
    text = text_of(p, 8, **settings)
    assert "gram" in text
    counts = 0, 1, 2, 3, 12
    found, expected = (gradients(program, p, *counts, text=t) for t in (text, ""))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_takes_one_product_the_less() -> None:
    loop = text_of(Problem(wide, (8, 5)), 8).split("for turn in range(steps):")[1].split("\n    del ")[0]
    assert loop.count("gram_") == 1
    assert loop.count("F.linear(") == 1
    assert loop.count(" @ ") == 2


@pytest.mark.parametrize(
    ("rows", "settings"),
    [(1, {"steps": 2}), (8, {"tolerance": 1e-3}), (8, {"stepper": "heun"}), (8, {"algorithm": "langevin"})],
    ids=["few samples", "tolerance", "heun", "noise"],
)
def test_other_loops_stay_as_they_are(rows: int, settings: dict[str, Any]) -> None:
    assert "gram" not in text_of(Problem(wide, (8, 5)), rows, **settings)


@pytest.mark.parametrize("net", ["gated", "dag", "cnn"])
def test_values_that_are_read_otherwise_too_stay_as_they_are(net: str) -> None:
    p = problem(net)
    program = program_of(captured(p), "strict", steps=9)
    text = emit(program, functional=True, lengths=dict.fromkeys(program.pc.graph.dims, 4)).text
    found, expected = (gradients(program, p, 9, text=t) for t in (text, ""))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
