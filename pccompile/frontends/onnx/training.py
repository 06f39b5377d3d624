"""Operators of `ai.onnx.preview.training`: steps of optimisers, and gradients of a part of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Value, as_tensor, tracing

TRAINING = "ai.onnx.preview.training"
Step = Callable[..., tuple[Tensor, ...]]


def stepped(step: Step, node: Node, rate: Tensor, count: Tensor, values: tuple[Tensor, ...], states: int) -> Any:
    """`step` of each weight with its gradient and its `states` states; outputs are grouped as the inputs are."""
    number = len(values) // (2 + states)
    groups = [values[i * number : (i + 1) * number] for i in range(2 + states)]
    results = [step(node, rate, count, *one) for one in zip(*groups, strict=True)]
    return [new for group in zip(*results, strict=True) for new in group]


def regularised(node: Node, x: Tensor, g: Tensor) -> Tensor:
    """The gradient with that of the penalty on the weight."""
    return g + x * float(node.get("norm_coefficient", 0.0))


@operator("Adagrad", domain=TRAINING)
def adagrad(node: Node, rate: Tensor, count: Tensor, *values: Tensor) -> Any:
    """The weights and summed squares after a step of Adagrad."""
    return stepped(adagrad_step, node, rate, count, values, 1)


def adagrad_step(node: Node, rate: Tensor, count: Tensor, x: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """One weight and its summed squares."""
    g = regularised(node, x, g)
    h = h + g * g
    return x - rate / (1 + count * node.get("decay_factor", 0.0)) * g / (h.sqrt() + node.get("epsilon", 1e-6)), h


@operator("Adam", domain=TRAINING)
def adam(node: Node, rate: Tensor, count: Tensor, *values: Tensor) -> Any:
    """The weights and their first and second moments after a step of Adam."""
    return stepped(adam_step, node, rate, count, values, 2)


def adam_step(
    node: Node, rate: Tensor, count: Tensor, x: Tensor, g: Tensor, v: Tensor, h: Tensor
) -> tuple[Tensor, ...]:
    """One weight and its moments; their bias is corrected from the second step on."""
    alpha, beta = node.get("alpha", 0.9), node.get("beta", 0.999)
    g = regularised(node, x, g)
    v, h = alpha * v + (1 - alpha) * g, beta * h + (1 - beta) * g * g
    faded_v, faded_h = (torch.where(count == 0, 0.0, decay**count) for decay in (alpha, beta))
    x = x - rate * torch.sqrt(1 - faded_h) / (1 - faded_v) * v / (h.sqrt() + node.get("epsilon", 1e-6))
    return (1 - node.get("norm_coefficient_post", 0.0)) * x, v, h


@operator("Momentum", domain=TRAINING)
def momentum(node: Node, rate: Tensor, count: Tensor, *values: Tensor) -> Any:
    """The weights and their velocities after a step with momentum, Nesterov's or the plain one."""
    return stepped(momentum_step, node, rate, count, values, 1)


def momentum_step(node: Node, rate: Tensor, count: Tensor, x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """One weight and its velocity; the first gradient counts in full."""
    alpha = node.get("alpha")
    g = regularised(node, x, g)
    v = alpha * v + torch.where(count > 0, node.get("beta"), 1.0) * g
    return x - rate * (g + alpha * v if node.get("mode") == "nesterov" else v), v


@operator("Gradient", domain=TRAINING, control=True)
def gradient(node: Node, run: Callable[..., list[Value]], *values: Value) -> list[Value]:
    """The derivatives of the tensor called `y` with respect to those called `xs`, at the values given."""
    tensors = [as_tensor(v) for v in values]
    if any(map(tracing, tensors)):
        raise CompileError("Gradient takes derivatives inside the model, which cannot be traced")
    body, count, further = node.get("body"), len(node.get("xs")), torch.is_grad_enabled()
    with torch.enable_grad():
        sources = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors[:count]]
        (y,) = run(body, [*sources, *tensors[count:]])
        found = torch.autograd.grad(as_tensor(y).sum(), sources, create_graph=further, allow_unused=True)
    return [torch.zeros_like(s) if d is None else d for s, d in zip(sources, found, strict=True)]
