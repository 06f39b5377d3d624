"""States that forward keeps in the model advance, and their gradient through several calls is eager's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from validity.cells import CELLS
from validity.states import agree, data, detached, pair

Make = Callable[[], nn.Module]


@pytest.mark.quick(13)
@pytest.mark.parametrize("make", CELLS)
def test_the_gradient_goes_through_all_calls(make: Make) -> None:
    eager, pc = pair(make)
    for model in (eager, pc):
        outputs = [model(x) for x in data(3)]
        sum(o.square().sum() for o in outputs).backward()
    agree(pc.model, eager)


@pytest.mark.quick(13)
@pytest.mark.parametrize("make", CELLS)
def test_truncated_backpropagation(make: Make) -> None:
    eager, pc = pair(make)
    for model in (eager, pc):
        for x in data(3):
            detached(model if model is eager else pc.model)
            model(x).square().sum().backward()
    agree(pc.model, eager)
