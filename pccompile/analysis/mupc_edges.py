"""The linear edges of a network: products of a value with a parameter, and what hands values on between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pccompile.diagnostics import Collector
from pccompile.ir import Arg, Graph, Node, Ref, TensorType
from pccompile.ops import definition

SUM, PRODUCT, QUOTIENT = "aten.add.Tensor", "aten.mul.Tensor", "aten.div.Tensor"
SOFTMAX = ("aten._softmax.default", "aten._safe_softmax.default")
CAST, FILL = "aten._to_copy.default", "aten.masked_fill.Scalar"


@dataclass(frozen=True)
class Factor:
    """The constant of a parameter: one number, or with `rows` one for each row; why: for a reader."""

    scale: float
    why: str
    rows: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Edge:
    """A product of a value with a parameter: `read` is the value, n the inputs to each unit of the result."""

    node: Node
    read: Ref
    weight: str
    n: int


class EdgeReader:
    """Reads the edges of a graph in canonical form; `problems` takes what cannot be told."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {n.name: n for n in graph.nodes}
        self.problems = Collector()
        moved = set(graph.inputs)
        for n in graph.nodes:
            moved |= {n.name} if any(i in moved for i in n.inputs) else set()
        self.moved = moved
        self.edges = {e.node.name: e for n in graph.nodes for e in self.edge(n)}

    def refuse(self, node: Node, why: str, hint: str) -> None:
        """Note that something cannot be told."""
        self.problems.add(f"mupc: {node.op.split('.')[1]} {node.name}: {why}", node.where, hint)

    def path(self, name: str) -> str:
        """A parameter's path in the model."""
        return self.graph.origin.get(name, name)

    def edge(self, n: Node) -> Iterator[Edge]:
        """The edge that a node is, if it is one."""
        if n.name not in self.moved or not (weights := [i for i in n.inputs if self.learns(i)]):
            return
        if definition(n.op).recurrent:
            self.refuse(n, "a layer over time has no factors", "write its cells with linear layers")
        if not definition(n.op).product:
            return
        first, second = (n[a] for a in definition(n.op).product)
        left = first not in self.moved
        weight, read = (first, second) if left else (second, first)
        if weight not in weights:
            return
        if n.op == "aten.convolution.default" and n["transposed"]:
            self.refuse(n, "inputs of a transposed convolution differ from unit to unit", "upsample and convolve")
            return
        parameter = weight
        while parameter in self.nodes and self.moves(self.nodes[parameter]):
            parameter = self.nodes[parameter].inputs[0]
        if parameter not in self.graph.params:
            self.refuse(n, "its weight is computed from parameters", "take its norm or its factors out first")
            return
        yield Edge(n, read, str(parameter), self.fan_in(n, weight, left))

    def learns(self, name: Ref) -> bool:
        """Whether a value is computed from parameters alone."""
        return name not in self.moved and self.floating(name) and self.rests_on_parameters(name)

    def rests_on_parameters(self, name: str) -> bool:
        """Whether a parameter is among what a value is computed from."""
        waiting, seen = [name], set[str]()
        while waiting:
            at = waiting.pop()
            if at in self.graph.params:
                return True
            if at in self.nodes and at not in seen:
                seen.add(at)
                waiting += map(str, self.nodes[at].inputs)
        return False

    def floating(self, name: str) -> bool:
        """Whether a value is a tensor of real or complex numbers."""
        found = self.graph.types[name]
        return isinstance(found, TensorType) and found.differentiable

    def fan_in(self, n: Node, weight: Ref, left: bool) -> int:
        """The inputs to each unit."""
        shape = self.shape(weight)
        if n.op == "aten.linear.default" or n.op == "aten.convolution.default":
            return math.prod(int(d) for d in shape[1:]) if len(shape) > 1 else int(shape[0])
        return int(shape[-1] if left or len(shape) == 1 else shape[-2])

    def shape(self, name: Arg) -> tuple[Arg, ...]:
        """The shape of a tensor."""
        found = self.graph.types[name]
        assert isinstance(found, TensorType)
        return found.shape

    def moves(self, n: Node) -> bool:
        """Whether a node computes nothing: wiring of one value, or a cast."""
        return len(set(n.inputs)) == 1 and (n.op in (CAST, "getitem") or definition(n.op).wiring)

    def through(self, n: Node) -> Ref | None:
        """The value that a node hands on as it is, in another form or times a number; None where it computes more."""
        moved = [i for i in dict.fromkeys(n.inputs) if i in self.moved] or list(dict.fromkeys(n.inputs))
        plain = n.op in (CAST, "getitem") or definition(n.op).wiring
        number = n.op in (PRODUCT, QUOTIENT) and not isinstance(n["other"], Ref)
        masked = n.op == PRODUCT and len(moved) == 1 and not any(self.learns(i) for i in n.inputs)
        dropped = masked and any(i in self.nodes and self.draws(i) for i in n.inputs)
        return moved[0] if len(moved) == 1 and (plain or number or dropped) else None

    def draws(self, name: str) -> bool:
        """Whether a value is a random mask."""
        waiting = [name]
        while waiting:
            n = self.nodes.get(waiting.pop())
            if n is not None and definition(n.op).random:
                return True
            waiting += map(str, n.inputs) if n is not None and n.name not in self.moved else []
        return False

    def stripped(self, name: Ref) -> Ref:
        """The value in front of wiring, casts, dropout and numbers."""
        while name in self.nodes and (before := self.through(self.nodes[name])) is not None:
            name = before
        return name
