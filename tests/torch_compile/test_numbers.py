"""Numbers that Dynamo lets vary (a rate of dropout, a slope, a schedule): each of their values gives eager's result."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALUES = (0.1, 0.5, 0.9, 0.3, 0.1, 0.7)
SCHEDULE = {"rate": 0.1}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    """A layer, then `run` with the number `v` and the modules of `make(v)`."""

    def __init__(self, run: Callable[..., Tensor], make: Callable[[float], nn.Module] | None, v: float) -> None:
        super().__init__()
        self.a, self.run, self.make = nn.Linear(4, 4), run, make
        self.set(v)

    def set(self, v: float) -> None:
        self.v = v
        if self.make is not None:
            fresh = self.make(v)
            if not hasattr(self, "layer"):
                self.layer = fresh
            for old, new in zip(self.layer.modules(), fresh.modules(), strict=True):
                for key, value in vars(new).items():
                    if isinstance(value, float):
                        setattr(old, key, value)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return self.run(self, x, *more)


def layer(m: Net, x: Tensor) -> Tensor:
    return m.layer(m.a(x))


def cells(m: Net, x: Tensor) -> Tensor:
    h = F.elu(m.a(x), m.v) + F.softplus(x, m.v) + F.hardtanh(x, -m.v, m.v)
    return h + torch.clamp(m.a(x), -m.v, max=m.v) + m.v ** torch.sin(x) + (x * x + 1) ** m.v + torch.full_like(x, m.v)


def operands(m: Net, x: Tensor) -> Tensor:
    return torch.tanh(m.a(x) * m.v + 1 / (1 + m.v)) - m.v


def filled(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return h.masked_fill(x > m.v, m.v) + torch.add(x, h, alpha=m.v) + F.layer_norm(h, (4,), eps=m.v)


def attention(m: Net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.a(x)[None], x[None], x[None], scale=m.v)


def branched(m: Net, x: Tensor) -> Tensor:
    return m.a(x) if m.v > 0.5 else m.a(x) * m.v


def rounded(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return h * int(m.v * 10) + h.roll(int(m.v * 10)) * round(m.v, 1) + h.narrow(1, 0, 1 + int(m.v > 0.4))[:, :1]


def of_a_global(m: Net, x: Tensor) -> Tensor:
    return F.leaky_relu(m.a(x), SCHEDULE["rate"]) * math.sqrt(SCHEDULE["rate"])


def after_a_break(m: Net, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), m.v)
    torch._dynamo.graph_break()
    return F.leaky_relu(m.a(h), m.v)


def many(v: float) -> nn.Module:
    return nn.Sequential(
        nn.CELU(v), nn.Threshold(-v, v), nn.Softshrink(v / 10), nn.Hardshrink(v / 10), nn.RReLU(v / 2, v)
    )


KINDS: dict[str, tuple[Callable[..., Tensor], Callable[[float], nn.Module] | None]] = {
    "dropout": (layer, nn.Dropout),
    "alpha dropout": (layer, nn.AlphaDropout),
    "leaky relu": (layer, nn.LeakyReLU),
    "batch norm": (layer, lambda v: nn.BatchNorm1d(4, momentum=v, eps=v / 10)),
    "instance norm": (
        lambda m, x: m.layer(m.a(x)[None])[0],
        lambda v: nn.InstanceNorm1d(6, momentum=v, track_running_stats=True),
    ),
    "activations": (layer, many),
    **{
        f.__name__: (f, None)
        for f in (cells, operands, filled, attention, branched, rounded, of_a_global, after_a_break)
    },
}


def step(run: Callable[[Tensor], Tensor], module: nn.Module) -> list[Any]:
    """Result, gradients and buffers after one step."""
    torch.manual_seed(5)
    module.zero_grad()
    x = torch.randn(6, 4).requires_grad_()
    result = run(x)
    result.square().sum().backward()
    return [result.detach(), x.grad, *(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]


@pytest.mark.quick(12)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", ["another model", "a schedule"])
def test_every_value_gives_the_result_of_eager_torch(changes: str, kind: str) -> None:
    net = Net(*KINDS[kind], VALUES[0])
    eager, run = copy.deepcopy(net), torch.compile(net, backend="pccompile")
    for v in VALUES:
        SCHEDULE["rate"] = v
        if changes == "another model":
            net = Net(*KINDS[kind], v)
            eager, run = copy.deepcopy(net), torch.compile(net, backend="pccompile")
        net.set(v), eager.set(v)
        torch.testing.assert_close(step(run, net), step(eager, eager))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-300, 1e30, math.inf, -math.inf, math.nan])
def test_values_at_the_edges(value: float) -> None:
    net = Net(lambda m, x: F.leaky_relu(torch.sin(m.a(x)), m.v) + F.hardtanh(x, -1.0, max(1.0, m.v)), None, 0.25)
    eager, run = copy.deepcopy(net), torch.compile(net, backend="pccompile")
    for v in (0.25, 0.5, value, 0.5, value):
        net.set(v), eager.set(v)
        torch.testing.assert_close(step(run, net), step(eager, eager), equal_nan=True)


@pytest.mark.parametrize("kind", ["dropout", "leaky relu", "operands"])
def test_an_argument_that_is_a_number(kind: str) -> None:
    def called(m: Net, x: Tensor, v: float) -> Tensor:
        m.v = v
        return F.leaky_relu(F.dropout(m.a(x), v), v) * v

    net = Net(called, None, 0.1)
    eager, run = copy.deepcopy(net), torch.compile(net, backend="pccompile")
    for v in VALUES:
        torch.testing.assert_close(step(lambda x: run(x, v), net), step(lambda x: eager(x, v), eager))  # noqa: B023


def test_programs_of_old_values_are_dropped() -> None:
    texts: list[object] = []
    hook = lambda stage, result, seconds: texts.append(result) if stage == "emit" else None  # noqa: E731
    net = Net(lambda m, x: F.leaky_relu(m.a(x), m.v), None, 0.1)
    run = torch.compile(net, backend="pccompile", options={"hook": hook})
    for v in (0.1, 0.2, 0.3, 0.2, 0.3):
        net.set(v)
        step(run, net)
    assert len(texts) == 3
