"""Models with states under `torch.compile(backend="pccompile")`, where Dynamo follows what forward writes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from validity.cells import Lstm, Means, Plain, Rebound, Teacher
from validity.states import agree, data, widened


@pytest.mark.parametrize("make", [Rebound, Plain, Lstm, Means, Teacher])
def test_states_under_torch_compile(make: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = widened(make(), torch.float64)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend="pccompile")
    for call in (eager, compiled):
        sum(call(x).square().sum() for x in data(3)).backward()
    agree(model, eager)
