"""Dead-code elimination."""

from __future__ import annotations

from dataclasses import replace

from pccompile.ir import Graph, Node, lengths, live


def dce(graph: Graph) -> Graph:
    """Drop nodes that no output and no buffer needs, be it for a length that is read off their result."""
    sources = {name: s.tensor for name, s in graph.dims.items()}
    roots = (*graph.outputs, *graph.updates.values())

    def measured(n: Node) -> list[str]:
        return [sources[d] for d in lengths(n.args.values()) if d in sources]

    return replace(graph, nodes=live(graph.nodes, roots, measured))
