"""Running statistics are those of eager torch, on both roads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile


class Functional(nn.Module):
    """Statistics that the model holds itself, one of which may be absent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, self.mean, self.variance, use_input_stats=self.training, momentum=0.3)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "instance norm 1d": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (4, 3, 5)),
    "instance norm 2d": (
        lambda: nn.InstanceNorm2d(3, momentum=0.4, affine=True, track_running_stats=True),
        (2, 3, 4, 5),
    ),
    "instance norm 3d, one sample": (lambda: nn.InstanceNorm3d(3, affine=True, track_running_stats=True), (1, 3, 2, 2, 2)),
    "instance norm, a function": (Functional, (4, 3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(3, momentum=0.2), (4, 3, 5)),
    "batch norm twice": (lambda: nn.Sequential(*[nn.BatchNorm1d(3)] * 2), (4, 3, 5)),
}
ROADS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "export": lambda model, x: pccompile.compile(model, (x,)),
    "torch.compile": lambda model, x: torch.compile(model, backend="pccompile"),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("name", LAYERS)
def test_statistics_are_written_once_a_call(name: str, road: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    model = nn.Sequential(nn.Conv1d(3, 3, 1), layer()) if len(shape) == 3 else nn.Sequential(layer(), nn.Tanh())
    model = model.double()
    eager = copy.deepcopy(model)
    x = torch.randn(shape, dtype=torch.float64)
    run = ROADS[road](model, x)
    for training in (True, True, False, True):
        model.train(training), eager.train(training)
        for m, call in ((model, run), (eager, eager)):
            m.zero_grad()
            call(x.clone().requires_grad_()).square().sum().backward()
        torch.testing.assert_close(dict(model.named_buffers()), dict(eager.named_buffers()))
        gradients = [{k: p.grad for k, p in m.named_parameters()} for m in (model, eager)]
        torch.testing.assert_close(*gradients)
        assert not any(b.requires_grad for b in model.buffers())
