"""Where parameters move in inference and carry it beyond its bound, the call is undone and taken at a smaller rate."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from random_networks import BATCH, INPUTS, RandomNetwork, loss_of, outcome
from torch import Tensor, nn

import pccompile

SEED = 85
"""A network whose curvature an optimizer's 148 steps of 0.01 take beyond the rate that was right for it."""


def problem() -> tuple[nn.Module, Tensor, Tensor, Any]:
    draw = torch.Generator().manual_seed(1000 + SEED)
    loss, target = loss_of(SEED)
    x = torch.randn(BATCH, INPUTS, generator=draw, dtype=torch.float64)
    return RandomNetwork(SEED).double(), x, target(draw), loss


def stepped(model: nn.Module, x: Tensor, y: Tensor, loss: Any, **settings: Any) -> tuple[Any, Any, list[str]]:
    """The compiled model after a training step, its optimizer, and what was told."""
    pc = pccompile.compile(model, (x,), algorithm="incremental", loss=loss, check=False, **settings)
    optimizer = torch.optim.Adam(pc.parameters(), 1e-2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pc.train_step(x, y, optimizer)
    return pc, optimizer, [str(w.message) for w in told]


def flat(state: dict[str, Any]) -> Tensor:
    """All numbers of an optimizer's state."""
    return torch.cat([t.flatten().double() for s in state["state"].values() for t in s.values()])


def test_the_call_is_as_if_its_rate_had_been_the_smaller_one() -> None:
    model, x, y, loss = problem()
    twin = copy.deepcopy(model)
    pc, optimizer, (line,) = stepped(model, x, y, loss, rate="auto", steps="auto")
    assert "leaves its bound" in line
    assert "parameters move as well; chosen anew: rate" in line
    first = pc.compiled.program.arguments  # what was chosen, and was too large
    quarter = first["rate"] / 4
    assert f"rate {first['rate']:.4g} → {quarter:.4g}" in line
    other, reference, told = stepped(twin, x, y, loss, rate=quarter, steps=first["steps"])
    assert not told
    for p, q in zip(pc.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(flat(optimizer.state_dict()), flat(reference.state_dict()))


def test_steps_stay_where_the_rate_is_chosen_anew() -> None:
    """Each is a step of the optimizer: the weights of a call that takes more of them go farther."""
    model, x, y, loss = problem()
    pc, *_ = stepped(model, x, y, loss, rate="auto", steps="auto")
    first = dict(pc.compiled.program.arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pc.loss(x, target=y)
    assert any("is above" in str(w.message) and "steps 148 → 148" in str(w.message) for w in told)
    now = pc.compiled.program.arguments
    assert now["rate"] < first["rate"] / 4
    assert now["steps"] == first["steps"]


def test_a_rate_that_was_given_stays() -> None:
    model, x, y, loss = problem()
    pc, _, told = stepped(model, x, y, loss, rate=0.2262, steps=148)
    assert any("diverges" in line for line in told)
    assert pc.compiled.program.arguments["rate"] == 0.2262


def test_where_no_rate_helps_nothing_has_moved() -> None:
    model, x, y, loss = problem()
    pc = pccompile.compile(model, (x,), algorithm="incremental", loss=loss, check=False, rate="auto", steps="auto")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(pc.parameters(), math.inf, momentum=0.9)
    with pytest.raises(pccompile.CompileError, match="no rate keeps errors in bounds while parameters move"):
        pc.train_step(x, y, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("seed", [SEED, pytest.param(124, marks=pytest.mark.slow)])
def test_networks_that_parameters_carry_away_are_brought_back(seed: int) -> None:
    assert outcome(seed, "incremental") == ("", True)
