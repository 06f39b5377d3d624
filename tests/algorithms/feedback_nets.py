"""The networks of `nets`, written by hand with torch.autograd.Functions whose backward reads other weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.nets import Gradients, Problem, RandomDAG


class Linear(torch.autograd.Function):
    """x Wᵀ + b, whose error goes back through B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        x, feedback = ctx.saved_tensors
        rows, inputs = e.reshape(-1, e.shape[-1]), x.reshape(-1, x.shape[-1])
        return e @ feedback, rows.T @ inputs, rows.sum(0), None


class Conv(torch.autograd.Function):
    """A convolution with padding 1, whose error goes back through B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        x, feedback = ctx.saved_tensors
        into = F.conv_transpose2d(e, feedback, padding=1)
        weight = torch.nn.grad.conv2d_weight(x, feedback.shape, e, padding=1)
        return into, weight, e.sum((0, 2, 3)), None


class Dropped(torch.autograd.Function):
    """An activation whose slope is taken for 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        return e, None


class Net:
    """A network's parameters, with a feedback weight for each that has one."""

    def __init__(self, p: Problem, feedback: Mapping[str, Tensor], dropped: bool) -> None:
        self.p, self.feedback, self.dropped = p, feedback, dropped
        self.own = {n: t.detach().clone().requires_grad_() for n, t in p.model.named_parameters()}

    def act(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return Dropped.apply(x, function) if self.dropped else function(x)  # type: ignore[no-any-return,no-untyped-call]

    def layer(self, kind: Any, x: Tensor, weight: str, bias: str) -> Tensor:
        own = self.own[weight]
        return kind.apply(x, own, self.own[bias], self.feedback.get(weight, own.detach()))  # type: ignore[no-any-return]

    def linear(self, x: Tensor, path: str) -> Tensor:
        return self.layer(Linear, x, f"{path}.weight", f"{path}.bias")

    def gradients(self, forward: Callable[[Net, Tensor], Tensor]) -> Gradients:
        self.p.loss(forward(self, self.p.x), self.p.target).backward()
        return {n: t.grad for n, t in self.own.items() if t.grad is not None}


def chain(net: Net, x: Tensor) -> Tensor:
    for path in ("0", "2"):
        x = net.act(torch.tanh, net.linear(x, path))
    return net.linear(x, "4")


def gated(net: Net, x: Tensor) -> Tensor:
    h = net.act(torch.tanh, net.linear(x, "a"))
    gate = net.act(torch.sigmoid, net.linear(h, "b"))
    return net.linear(net.act(torch.tanh, net.linear(h * gate, "c")) + h, "o")


def dag(net: Net, x: Tensor) -> Tensor:
    model = net.p.model
    assert isinstance(model, RandomDAG)
    values = [x]
    for i, reads in enumerate(model.reads):
        first, *others = (values[r] for r in reads)
        for k, other in enumerate(others):
            first = first * other if k % 2 else first + other
        values.append(net.act(torch.tanh, net.linear(first, f"layers.{i}")))
    return net.linear(values[-1] + values[1], "out")


def cnn(net: Net, x: Tensor) -> Tensor:
    def norm(h: Tensor, path: str) -> Tensor:
        return F.batch_norm(h, None, None, net.own[f"{path}.weight"], net.own[f"{path}.bias"], training=True)

    h = net.act(torch.tanh, norm(net.layer(Conv, x, "first.weight", "first.bias"), "n1"))
    h = h + norm(net.layer(Conv, h, "second.weight", "second.bias"), "n2")
    return net.linear(h.mean((2, 3)), "out")


def lstm(net: Net, x: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        gates = net.layer(Linear, step, "cell.weight_ih", "cell.bias_ih")
        gates = gates + net.layer(Linear, h, "cell.weight_hh", "cell.bias_hh")
        i, f, g, o = gates.chunk(4, 1)
        i, f, o = (net.act(torch.sigmoid, t) for t in (i, f, o))
        c = f * c + i * net.act(torch.tanh, g)
        h = o * net.act(torch.tanh, c)
    return net.linear(h, "out")


def transformer(net: Net, x: Tensor) -> Tensor:
    def norm(h: Tensor, path: str) -> Tensor:
        return F.layer_norm(h, (8,), net.own[f"{path}.weight"], net.own[f"{path}.bias"])

    q, k, v = net.layer(Linear, x, "layer.self_attn.in_proj_weight", "layer.self_attn.in_proj_bias").chunk(3, -1)
    q, k, v = (t.reshape(len(x), -1, 2, 4).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(4), -1)
    mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
    x = norm(x + net.linear(mixed, "layer.self_attn.out_proj"), "layer.norm1")
    hidden = net.act(torch.relu, net.linear(x, "layer.linear1"))
    x = norm(x + net.linear(hidden, "layer.linear2"), "layer.norm2")
    return net.linear(x.mean(1), "out")


FORWARD: dict[str, Callable[[Net, Tensor], Tensor]] = {
    f.__name__: f for f in (chain, gated, dag, cnn, lstm, transformer)
}


def feedback_of(pc: nn.Module, kind: str) -> dict[str, Tensor]:
    """What stands in the place of each weight that takes part in a product."""
    if kind == "sign":
        wide = {n: p.detach() for n, p in pc.named_parameters() if p.dim() > 1}
        return {n: w.sign() * w.square().mean().sqrt() for n, w in wide.items()}
    return {
        k.removeprefix("feedback."): t.detach().clone() for k, t in pc.state_dict().items() if k.startswith("feedback.")
    }
