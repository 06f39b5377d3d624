"""What no role can be given to is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import pccompile
from algorithms.nets import problem
from algorithms.test_roles import compiled
from pccompile import CompileError

REFUSED = [
    ({"free": ["inptu"]}, "'inptu' is no input, no vertex and no module", "near it: input; inputs: input"),
    ({"free": ["n1"]}, "n1 is a hidden vertex, which inference moves anyway", "clamped="),
    ({"free": ["n4"]}, "n4 is an output: leave its target out", ""),
    ({"free": {"input": 1.0}}, "the prior of input is 1.0", "pccompile.energy"),
    ({"clamped": {"input": torch.zeros(4, 5)}}, "input input is given by its argument", "free="),
    ({"clamped": {"n11": torch.zeros(4, 6)}}, "'n11' is no input, no vertex and no module", "near it: n1"),
    ({"clamped": {"n1": torch.zeros(4, 5)}}, "the value of n1 is [4, 5], and n1 is [4, 6]", ""),
    ({"clamped": {"n1": 3.0}}, "what is given of n1 is 3.0", "a tensor"),
    ({"mask": {"input": torch.zeros(4, 5)}}, "the mask of input is float32", "booleans"),
    ({"mask": {"n1": torch.zeros(4, 6) > 0}}, "n1 is a hidden vertex, which inference moves anyway", "clamped="),
    ({"mask": {"input": torch.zeros(3, 9) > 0}}, "the mask of input is [3, 9], and input is [4, 5]", ""),
]


@pytest.mark.parametrize("how, what, hint", REFUSED)
def test_what_cannot_be_is_named(how: dict[str, Any], what: str, hint: str) -> None:
    p = problem("chain")
    pc = compiled(copy.deepcopy(p.model), p.x)
    with pytest.raises(CompileError) as caught:
        pc.settle(p.x, target=p.target, **how)
    assert what in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "zil", "meta-pcn"])
def test_algorithms_whose_predictions_stay_refuse(algorithm: str) -> None:
    p = problem("chain")
    pc = pccompile.compile(copy.deepcopy(p.model), (p.x,), algorithm=algorithm, check=False)
    with pytest.raises(CompileError, match=f"{algorithm} infers no inputs and takes no hidden values"):
        pc.settle(p.x, target=p.target, free=["input"])


def test_whole_numbers_cannot_be_free() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    pc = compiled(model, torch.tensor([1, 2]))
    with pytest.raises(CompileError, match="input input cannot be free: it is int64"):
        pc.settle(torch.tensor([1, 2]), target=torch.zeros(2, 2), free=["input"])


def test_automatic_rates_are_not_measured_with_roles() -> None:
    p = problem("chain")
    pc = compiled(copy.deepcopy(p.model), p.x, rate="auto")
    with pytest.raises(CompileError, match="measured with inputs that are given"):
        pc.settle(p.x, target=p.target, free=["input"])
