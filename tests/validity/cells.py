"""Models that keep a state in themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, WIDTH = 4, 3


class Rebound(nn.Module):
    """A recurrent cell whose buffer is another tensor after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("h", torch.zeros(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.h = torch.tanh(self.w(x) + self.u(self.h))
        return self.h


class Plain(Rebound):
    """The same with a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        del self._buffers["h"]
        self.h = torch.zeros(ROWS, WIDTH)


class Written(Rebound):
    """The same with a buffer that is written in place; it is read through a copy, as eager torch demands."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.w(x) + self.u(self.h.clone()))
        self.h.copy_(h)
        return h * 2


class PlainWritten(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.w(x) + self.u(self.h.clone()))
        self.h[:] = h
        return h.sum(1)


class Late(Rebound):
    """The state is None until the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("h", None)

    def forward(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x) if self.h is None else self.h
        self.h = torch.tanh(self.w(x) + self.u(before))
        return self.h.mean(0)


class LatePlain(Late):
    def __init__(self) -> None:
        super().__init__()
        del self._buffers["h"]
        self.h = None


class Created(Rebound):
    """The attribute does not exist before the first call."""

    def __init__(self) -> None:
        super().__init__()
        del self._buffers["h"]

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "h"):
            self.h = x.new_zeros(ROWS, WIDTH)
        self.h = torch.tanh(self.w(x) + self.u(self.h))
        return self.h


class Gru(nn.Module):
    """torch's own cell, its state in a nested module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.cell = nn.GRUCell(WIDTH, WIDTH)
        self.inner.register_buffer("h", torch.zeros(ROWS, WIDTH))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.h = self.inner.cell(x, self.inner.h)
        return self.out(self.inner.h)


class Lstm(nn.Module):
    """The state is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.state = (torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state)
        return self.state[0]


class LateLstm(Lstm):
    """A pair that is None at first; a whole sequence at a call."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.state = nn.LSTM(WIDTH, WIDTH, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        y, self.state = self.net(x.unsqueeze(1), self.state)
        return y


class _Spike(torch.autograd.Function):
    """A step whose slope is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (1 + 5 * x.abs()) ** 2


class Lif(nn.Module):
    """A leaky integrate-and-fire neuron that is reset by subtraction, with a learned leak."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.leak, self.mem = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.tensor(0.8)), 0.0

    def reset(self) -> None:
        self.mem = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.mem = self.leak * self.mem + self.fc(x)
        spike = _Spike.apply(self.mem - 0.3)
        self.mem = self.mem - 0.3 * spike
        return spike


class Spiking(nn.Module):
    """Two neurons in a row, each with a state of its own, and the traces of both."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Lif(), Lif())
        self.trace = {"in": torch.zeros(ROWS, WIDTH), "out": torch.zeros(ROWS, WIDTH)}

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        self.trace["in"] = 0.5 * self.trace["in"] + x
        self.trace["out"] = 0.5 * self.trace["out"] + y
        return y + self.trace["out"] * self.trace["in"]


class Cache(nn.Module):
    """Attention over all that was seen: keys and values in growing lists."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.keys.append(self.k(x))
        self.values.append(self.v(x))
        keys, values = torch.stack(self.keys, 1), torch.stack(self.values, 1)
        return F.scaled_dot_product_attention(self.q(x).unsqueeze(1), keys, values).squeeze(1)


class Grown(Cache):
    """The same in one tensor that grows, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Any] = {"length": 0}

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        if self.memory["length"]:
            k, v = torch.cat([self.memory["k"], k], 1), torch.cat([self.memory["v"], v], 1)
        self.memory = {"k": k, "v": v, "length": self.memory["length"] + 1}
        return F.scaled_dot_product_attention(self.q(x).unsqueeze(1), k, v).squeeze(1)


class Slots(Cache):
    """The same in buffers of fixed size, a row at a call, at a place that a buffer counts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(6, ROWS, WIDTH))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.table = self.table.index_copy(0, self.count.clone(), self.k(x).unsqueeze(0))
        self.count += 1
        seen = (torch.arange(6) < self.count).view(6, 1, 1)
        return self.q(x) * (self.table * seen).sum(0)


class Teacher(nn.Module):
    """A teacher that follows its student, in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(WIDTH, WIDTH), nn.Module()
        self.teacher.register_buffer("weight", torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.student.weight, alpha=0.1)
        return (self.student(x) - x @ self.teacher.weight.clone().t()) ** 2


class Means(nn.Module):
    """A running mean by hand: assigned, in place, under no_grad, and with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        for name in ("a", "b", "c", "d"):
            self.register_buffer(name, torch.zeros(WIDTH))
        self.e = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(x)
        mean = z.mean(0)
        self.a = 0.9 * self.a + 0.1 * mean.detach()
        self.b.mul_(0.9).add_(0.1 * mean.detach())
        with torch.no_grad():
            self.c.lerp_(mean, 0.1)
            self.e = self.e.lerp(mean, 0.2)
        self.d = 0.9 * self.d + 0.1 * mean
        return z - self.a - self.b.clone() * self.c.clone() - self.d * self.e


class Twice(nn.Module):
    """Batch norm, called twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(self.norm(x)))


class Counting(nn.Module):
    """Numbers that are counted up and not read, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls, self.seen, self.ready = nn.Linear(WIDTH, WIDTH), 0, 0.0, False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = 0.5 * self.seen + 2
        self.ready = True
        return self.fc(x).tanh()


class Warming(nn.Module):
    """A number that decides what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.step = nn.Linear(WIDTH, WIDTH), 0

    def forward(self, x: Tensor) -> Tensor:
        self.step = min(self.step + 1, 3)
        y = self.fc(x) * (self.step / 3)
        return y if self.step < 2 else y.relu()


class Shared(nn.Module):
    """Two modules that look at one list of states, and one module that is used twice."""

    class Part(nn.Module):
        def __init__(self, states: list[Tensor]) -> None:
            super().__init__()
            self.fc, self.states = nn.Linear(WIDTH, WIDTH), states

        def forward(self, x: Tensor) -> Tensor:
            self.states[0] = torch.tanh(self.fc(x) + self.states[0])
            return self.states[0]

    def __init__(self) -> None:
        super().__init__()
        states = [torch.zeros(ROWS, WIDTH)]
        self.first, self.second = Shared.Part(states), Shared.Part(states)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x)))


class Start(nn.Module):
    """The state begins as the very buffer that says where to begin."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("start", torch.randn(ROWS, WIDTH))
        self.h = self.start

    def forward(self, x: Tensor) -> Tensor:
        self.h = torch.tanh(self.u(self.h) + x)
        return self.h + self.start


class Learned(Start):
    """The state begins as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.pair = [self.begin, torch.zeros(ROWS, WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        self.pair = [torch.tanh(self.u(self.pair[0]) + x), self.pair[0] * x]
        return self.pair[0] + self.pair[1]


class Previous(nn.Module):
    """The last input and the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * WIDTH, WIDTH)
        self.register_buffer("last", torch.zeros(ROWS, WIDTH))
        self.register_buffer("older", torch.zeros(ROWS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(torch.cat([x, self.last, self.older], 1))
        self.older, self.last = self.last, y
        return y


class Kept(nn.Module):
    """What is looked at later: written, never read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shown, self.size = nn.Linear(WIDTH, WIDTH), None, None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x).sigmoid()
        self.shown, self.size = hidden.softmax(1), x.shape[0]
        return hidden * hidden


class InTraining(Rebound):
    """The state moves in training only."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.w(x) + self.u(self.h))
        if self.training:
            self.h = h
        return h


CELLS: tuple[Callable[[], nn.Module], ...] = (
    *(Rebound, Plain, Written, PlainWritten, Late, LatePlain, Created, Gru, Lstm, LateLstm, Lif, Spiking, Cache, Grown),
    *(Slots, Teacher, Means, Twice, Counting, Warming, Shared, Start, Learned, Previous, Kept, InTraining),
)
