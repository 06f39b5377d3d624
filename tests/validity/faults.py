"""Faults that are put into a compiler's stages, and the models that they are put into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers.models import ConvNet, Residual, Transformer, seeded
from torch import Tensor, nn

from pccompile.ir import Graph, Node, PCGraph, Ref, Vertex


class Stack(nn.Module):
    """Square layers, so that a transposed or a swapped gradient has the right shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Recurrent(nn.Module):
    """A cell that is used in turn, so that its weights have many uses."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 5)
        for t in range(3):
            h = self.cell(x[:, t], h)
        return self.out(h)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stack": (Stack, (6, 4)),
    "residual": (Residual, (6, 4)),
    "transformer": (Transformer, (2, 5, 4)),
    "convolutions": (ConvNet, (4, 3, 8, 8)),
    "recurrent": (Recurrent, (5, 3, 4)),
}


def drawn(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A model of the table and an example for it."""
    build, shape = MODELS[name]
    return seeded(build, dtype), torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


Break = Callable[[Vertex, str], Vertex]
"""A vertex with a wrong message to one of its parents."""


def rewritten(pc: PCGraph, vertex: str, parent: str, fault: Break) -> PCGraph:
    """`pc` with one message of one vertex spoilt."""
    return replace(pc, vertices=tuple(fault(v, parent) if v.name == vertex else v for v in pc.vertices))


def through(op: str, **args: Any) -> Break:
    """What is sent goes through one more operation."""

    def fault(v: Vertex, parent: str) -> Vertex:
        old, new = v.messages[parent], Ref(f"{v.name}_fault")
        type_ = next((n.type for n in v.rules if n.name == old), v.type)
        rule = Node(new, op, {"self": old, **args}, type_)
        return replace(v, rules=(*v.rules, rule), messages={**v.messages, parent: new})

    return fault


def dropped(v: Vertex, parent: str) -> Vertex:
    """Nothing is sent."""
    return replace(v, messages={p: m for p, m in v.messages.items() if p != parent})


def spoilt_operation(name: str, op: str, **args: Any) -> Callable[[Graph], Graph]:
    """What is called `name` goes through one more operation."""

    def fault(graph: Graph) -> Graph:
        nodes: list[Node] = []
        for n in graph.nodes:
            if n.name == name:
                inner = replace(n, name=f"{name}_before")
                nodes += [inner, Node(name, op, {"self": Ref(inner.name), **args}, n.type, n.where)]
            else:
                nodes.append(n)
        return replace(graph, nodes=tuple(nodes))

    return fault


SCALED = through("aten.mul.Scalar", other=1.001)
NEGATED = through("aten.neg.default")
TRANSPOSED = through("aten.transpose.int", dim0=0, dim1=1)
FLIPPED = through("aten.flip.default", dims=(0,))
ROLLED = through("aten.roll.default", shifts=(1,), dims=(0,))
HALVED = through("aten.mul.Scalar", other=0.5)
EMPTIED = through("aten.mul.Scalar", other=0.0)
CLIPPED = through("aten.clamp.default", min=-0.05, max=0.05)
SHIFTED = through("aten.add.Scalar", other=1e-2, alpha=1)
