"""Dead-code elimination."""

from __future__ import annotations

from dataclasses import replace

from pccompile.ir import Graph, live


def dce(graph: Graph) -> Graph:
    """Drop nodes that no output and no buffer needs."""
    return replace(graph, nodes=live(graph.nodes, (*graph.outputs, *graph.updates.values())))
