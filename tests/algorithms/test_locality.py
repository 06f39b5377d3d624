"""How far news travels in a step of each algorithm, on graphs of several depths."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import pccompile
from algorithms.nets import problem
from pccompile.algorithms import ALGORITHMS
from pccompile.analysis.locality import carried, locality
from pccompile.ir import ForEach, Program
from pccompile.report.locality import LocalityReport


def deep(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(3, 3), nn.Tanh())), nn.Linear(3, 2))


def reported(algorithm: str, depth: int, **settings: Any) -> LocalityReport:
    loss = None if ALGORITHMS[algorithm].mirrors else nn.MSELoss(reduction="sum")
    how = {"algorithm": algorithm, "loss": loss, "check": False, **settings}
    return pccompile.compile(deep(depth), (torch.randn(2, 3),), **how).locality()


STEP_BY_STEP = {
    "fixed-prediction": 1,
    "strict": 2,
    "incremental": 2,
    "alm": 2,
    "nudged": 2,
    "langevin": 3,
    "bidirectional": 2,
}


@pytest.mark.parametrize("algorithm", STEP_BY_STEP)
@pytest.mark.parametrize("depth", [3, 8])
def test_a_step_of_a_local_algorithm_is_as_long_at_any_depth(algorithm: str, depth: int) -> None:
    settings = {"lowering": "relax"} if algorithm == "fixed-prediction" else {}
    found = reported(algorithm, depth, **settings)
    assert max(t.hops for t in found.found.turns) == STEP_BY_STEP[algorithm]
    assert found.found.local
    assert "local in space" in str(found)
    assert found.found.longest == depth + bool(ALGORITHMS[algorithm].mirrors)  # a target is one edge behind its value


@pytest.mark.parametrize("depth", [3, 8])
def test_a_step_of_error_optimization_crosses_the_graph_and_back(depth: int) -> None:
    found = reported("error-optimization", depth)
    (turn,) = found.found.turns
    assert turn.hops == 2 * depth + 1
    assert not found.found.local
    predictions = [s for s in turn.chain if s.endswith("predict")]
    pulls = [s for s in turn.chain if s.endswith("pull")]
    assert len(predictions) == depth + 1
    assert len(pulls) == depth
    assert turn.chain.index(predictions[-1]) < turn.chain.index(pulls[0])
    assert "not local in space" in str(found)
    assert turn.chain[0] in str(found)


@pytest.mark.parametrize("algorithm", STEP_BY_STEP)
def test_depth_does_not_decide_what_is_local(algorithm: str) -> None:
    settings = {"lowering": "relax"} if algorithm == "fixed-prediction" else {}
    assert reported(algorithm, 1, **settings).found.local
    assert not reported("error-optimization", 1).found.local


def test_a_relaxation_that_is_evaluated_is_certified_by_its_steps() -> None:
    found = reported("fixed-prediction", 3, lowering="closed-form")
    assert found.found.turns[0].turn == "a step"
    assert found.found.local
    assert any("evaluates what they end in" in n for n in found.notes)
    assert not reported("fixed-prediction", 3, lowering="relax").notes


def test_one_wave_is_local_and_said_to_wait() -> None:
    for algorithm in ("exact", "zil"):
        found = reported(algorithm, 4)
        assert found.found.local
        assert "in one wave: each vertex waits for its neighbours" in str(found)


def test_what_outlives_a_relaxation() -> None:
    assert "gradient" in reported("nudged", 3).found.across
    assert reported("strict", 3).found.across == ()


def test_what_is_kept_and_when_parameters_learn() -> None:
    kept = {a: reported(a, 3).found for a in ALGORITHMS if a != "fixed-prediction"}
    assert "prediction" in kept["exact"].kept
    assert kept["strict"].kept == ("value",)
    assert kept["alm"].kept == ("dual", "value")
    assert kept["strict"].learns == "after inference"
    assert kept["incremental"].learns == "inside inference, at every step"
    assert kept["nudged"].learns == "in each phase of inference"
    assert kept["zil"].learns == "at several moments of inference"


def test_damped_sweeps_cross_the_graph_once_a_row() -> None:
    def program(depth: int) -> Program:
        x, how = torch.randn(2, 3), {"algorithm": "fixed-prediction", "lowering": "exponentials", "check": False}
        return pccompile.compile(deep(depth), (x,), **how).compiled.program

    (turn,) = locality(program(8)).turns
    assert turn.hops >= 8
    assert turn.sweeps
    for depth in (3, 8):
        rows = next(s for s in program(depth).infer if isinstance(s, ForEach)).rows
        assert carried(program(depth))["messages"] == 2 * depth * len(rows)


def test_messages_read_weights_and_no_biases() -> None:
    found = problem("gated").compile("strict").locality().found
    assert found.transported == ("b.weight", "c.weight", "o.weight")


def test_what_an_inference_evaluates() -> None:
    """Three vertices: one forward pass, and strict's predictions and pulls for each step, one edge each."""
    work = reported("strict", 2, steps=10).work
    assert work == {"predictions": 3 + 11 * 3, "messages": 10 * 2, "gradients": 6}


def test_the_report_as_json() -> None:
    found = json.loads(json.dumps(reported("alm", 3).as_dict()))
    assert found["algorithm"] == "alm"
    assert found["local"] is True
    assert found["turns"][0]["hops"] == 2
