"""Buffers that are written in place with values that carry an error."""

from __future__ import annotations

from dataclasses import replace

from pccompile.ir import Graph
from pccompile.passes.activity import passes_on


def carry_updates(graph: Graph) -> Graph:
    """`graph` with those new values of its buffers among its outputs which a wanted value can change.

    So that an error may come back to them from what reads the buffers later.
    """
    moved = set(graph.wanted)
    for n in graph.nodes:
        if passes_on(n) and any(i in moved for i in n.inputs):
            moved.add(n.name)
    added = dict.fromkeys(v for v in graph.updates.values() if v in moved and v not in graph.outputs)
    return replace(graph, outputs=(*graph.outputs, *added), further=graph.further + len(added))
