"""A state that comes to stand elsewhere: as a buffer, as a plain attribute, as a parameter; it is captured anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from validity.cells import ROWS, WIDTH
from validity.states import agree, data


class Moves(nn.Module):
    """Writes its state in training and only reads it in evaluation."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.u = nn.Linear(WIDTH, WIDTH)
        (self.register_buffer if registered else self.__setattr__)("h", torch.zeros(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.u(self.h) + x)
        if self.training:
            self.h = h.detach()
        return h


def _put(m: Any, put: Callable[[Tensor], object]) -> None:
    del m.h
    put(torch.ones(ROWS, WIDTH))


WHERE: dict[str, Callable[[Any], object]] = {
    "buffer": lambda m: _put(m, lambda t: m.register_buffer("h", t)),
    "plain": lambda m: _put(m, lambda t: setattr(m, "h", t)),
    "parameter": lambda m: _put(m, lambda t: setattr(m, "h", nn.Parameter(t))),
}


@pytest.mark.parametrize("registered", [False, True], ids=["plain", "registered"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_state_that_stands_elsewhere(registered: bool, where: str, training: bool) -> None:
    torch.manual_seed(0)
    eager = Moves(registered)
    first, *later = data(4, torch.float32)
    pc = pccompile.compile(copy.deepcopy(eager), (first,))
    for model in (eager, pc):
        model(first)
    for model in (eager, pc.model):
        WHERE[where](model)
        model.train(training and where != "parameter")  # eager torch assigns no tensor to a parameter
    for x in later:
        a, b = pc(x), eager(x)
        torch.testing.assert_close(a, b)
        for output in (a, b):
            output.square().sum().backward()
        agree(pc.model, eager, 1e-5)
