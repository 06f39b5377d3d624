"""Stop gradients where an operation sends nothing to an argument that waits: autograd has none behind it, not zeros."""

from __future__ import annotations

from dataclasses import replace

from pccompile.ir import Arg, Graph, Node, PCGraph, Ref, map_refs
from pccompile.ir.names import Namer
from pccompile.ops.functions import STOP


def unsent(pc: PCGraph) -> frozenset[tuple[str, str]]:
    """The operations that send nothing to an argument, with that argument: a backward returns None there.

    An operation with several results may be in several vertices, where errors arrive at different ones: it counts where
    none of them sends.
    """
    found = frozenset[tuple[str, str]]().union(*(v.unsent for v in pc.vertices))
    sent = {(n, a) for v in pc.vertices for n, a in found if n in v.how and (n, a) not in v.unsent}
    return found - sent


def stop_unsent(graph: Graph, pairs: frozenset[tuple[str, str]]) -> Graph:
    """`graph` in which the operation of each pair reads its argument behind a stop-gradient."""
    namer = Namer((*graph.types, *graph.dims))
    stopped: dict[str, list[str]] = {}
    for name, argument in sorted(pairs):
        stopped.setdefault(name, []).append(argument)
    nodes: list[Node] = []
    for n in graph.nodes:
        behind: dict[Ref, Ref] = {}
        for argument in stopped.get(n.name, ()):
            stop = Node(namer(f"{argument}_stopped"), STOP, {"x": Ref(argument)}, graph.types[argument], n.where)
            nodes.append(stop)
            behind[Ref(argument)] = Ref(stop.name)
        nodes.append(_reading(n, behind) if behind else n)
    return replace(graph, nodes=tuple(nodes))


def _reading(node: Node, behind: dict[Ref, Ref]) -> Node:
    args: dict[str, Arg] = {k: map_refs(a, lambda r: behind.get(r, r)) for k, a in node.args.items()}
    return replace(node, args=args)
