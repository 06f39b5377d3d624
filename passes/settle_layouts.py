"""Say which embeddings send sparse gradients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from pccompile.ir import Graph, Node

EMBEDDING = "aten.embedding.default"


def settle_layouts(graph: Graph) -> Graph:
    """Let an embedding ask for a sparse gradient only where its table is a leaf that nothing else reads.

    A sum of sparse and dense messages is dense, as it is with autograd.
    """
    readers: dict[str, list[Node]] = defaultdict(list)
    for n in graph.nodes:
        for name in n.inputs:
            readers[name].append(n)

    def stays(n: Node) -> bool:
        table = n["weight"]
        return table in graph.leaves and all(_asks(r) and r["weight"] == table for r in readers[table])

    nodes = (replace(n, args={**n.args, "sparse": False}) if _asks(n) and not stays(n) else n for n in graph.nodes)
    return replace(graph, nodes=tuple(nodes))


def _asks(n: Node) -> bool:
    return n.op == EMBEDDING and bool(n["sparse"])
