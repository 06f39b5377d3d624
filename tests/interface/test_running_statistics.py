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
    "instance norm 3d, one sample": (
        lambda: nn.InstanceNorm3d(3, affine=True, track_running_stats=True),
        (1, 3, 2, 2, 2),
    ),
    "instance norm, a function": (Functional, (4, 3, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(3, momentum=0.2), (4, 3, 5)),
    "batch norm, four times": (lambda: nn.Sequential(*[nn.BatchNorm1d(3)] * 4), (4, 3, 5)),
}
ROADS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "export": lambda model, x: pccompile.compile(model, (x,)),
    "torch.compile": lambda model, x: torch.compile(model, backend="pccompile"),
}


@pytest.mark.quick(6)
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


class Kept(nn.Module):
    """A model that keeps statistics of its own; `run` is the program."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.run = nn.Linear(4, 4), nn.BatchNorm1d(4), run
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def statistics_read(m: Kept, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.norm(h) * (h - m.norm.running_mean) / m.norm.running_var


def statistics_of_two_norms(m: Kept, x: Tensor) -> Tensor:
    y = m.norm(m.norm(m.a(x)))
    m.kept[1:3] = y.detach().mean(0)[1:3]
    return y * m.norm.running_mean * m.kept


def statistics_scaled(m: Kept, x: Tensor) -> Tensor:
    m.norm.running_mean.mul_(0.5)
    return m.norm(m.a(x)) + m.norm.running_mean


def moving_average(m: Kept, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        m.kept.mul_(0.9).add_(0.1 * h.mean(0))
    return h * m.kept


def a_slice(m: Kept, x: Tensor) -> Tensor:
    h = m.a(x)
    mean = h.mean(0) * 2
    with torch.no_grad():
        m.kept[1:3] = mean[:2]
        m.kept[:1].add_(mean[3:])
    return h * m.kept


def out(m: Kept, x: Tensor) -> Tensor:
    h = m.a(x)
    mean = h.mean(0)
    with torch.no_grad():
        torch.add(mean, 1, out=m.kept)
        F.normalize(mean, dim=0, out=m.kept)
    return h * m.kept


def a_slice_beside_a_norm(m: Kept, x: Tensor) -> Tensor:
    h = m.norm(m.a(x))
    with torch.no_grad():
        m.kept[2:] = h.mean(0)[2:]
    return m.norm(h) * (h - m.kept)


@pytest.mark.quick(7)
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize(
    "run",
    [statistics_read, statistics_of_two_norms, statistics_scaled, moving_average, a_slice, out, a_slice_beside_a_norm],
)
def test_statistics_that_are_read_carry_no_gradient(run: Callable[[Any, Tensor], Tensor], road: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Kept(run).double()
    eager = copy.deepcopy(model)
    x = torch.randn(6, 4, dtype=torch.float64)
    call = ROADS[road](model, x)
    for _ in range(3):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        results = [f(leaf) for f, leaf in zip((call, eager), leaves, strict=True)]
        for m, result in zip((model, eager), results, strict=True):
            m.zero_grad()
            result.square().sum().backward()
        torch.testing.assert_close(*results)
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
        torch.testing.assert_close(*(dict(m.named_buffers()) for m in (model, eager)))
        torch.testing.assert_close(*({k: p.grad for k, p in m.named_parameters()} for m in (model, eager)))
        assert not any(b.requires_grad for b in model.buffers())
