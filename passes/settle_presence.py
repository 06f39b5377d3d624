"""Say which results of a custom autograd Function get a gradient: its backward may ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pccompile.ir import Graph, Node
from pccompile.ops.functions import part_places
from pccompile.passes.activity import active

FUNCTION, SLICE = "pcc.function", "aten.slice.Tensor"


def settle_presence(graph: Graph) -> Graph:
    """Let a Function of several results know through which of them an error arrives."""
    if not any(n.op == FUNCTION and len(n.args["moving"]) > 1 for n in graph.nodes):
        return graph
    carrying = active(graph)
    return replace(graph, nodes=tuple(_settled(graph, n, carrying) for n in graph.nodes))


def _settled(graph: Graph, node: Node, carrying: frozenset[str]) -> Node:
    if node.op != FUNCTION or len(node.args["moving"]) < 2:
        return node
    present = tuple(i for i, part in parts(graph, node) if part in carrying)
    return replace(node, args={**node.args, "present": present})


def parts(graph: Graph, node: Node) -> Iterator[tuple[int, str]]:
    """The results of a Function that are read: their places among all, and the values that hold them."""
    types: Any = node["types"]
    moving: Any = node["moving"]
    starts = {start: i for i, (start, _) in zip(moving, part_places([types[i] for i in moving]), strict=True)}
    for n in graph.nodes:
        if n.op == SLICE and n["self"] == node.name and n["start"] in starts:
            yield starts[n["start"]], n.name
