"""A graph whose edges all go from one level to the next, by identities on those that skip levels.

Level d of a vertex is the number of edges of its longest path to an output. An edge over k levels gets k − 1
identities; edges of one source share them, which is the fewest for these levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pccompile.ir import ERROR, Arg, Node, PCGraph, Ref, Vertex, map_refs
from pccompile.ir.names import Namer


def levelled(pc: PCGraph) -> PCGraph:
    """`pc` with identities, so that every edge joins neighbouring levels."""
    level, children, clamped = pc.levels(), pc.children(), set(pc.clamped)
    rules = (n.name for v in pc.vertices for n in v.rules)
    namer = Namer((*pc.graph.leaves, *(n.name for n in pc.graph.nodes), *pc.names, *rules))
    vertices: list[Vertex] = []
    relays: dict[tuple[str, int], str] = {}
    for v in pc.vertices:
        senders = {p: relays[p, level[v.name]] for p in v.parents if (p, level[v.name]) in relays}
        v = _reading(v, senders)
        vertices.append(v)
        if v.name in clamped:
            continue
        lowest = min((level[c.name] for c in children[v.name]), default=level[v.name])
        source = v.name
        for d in range(level[v.name] - 1, lowest, -1):
            name = namer(f"{v.name}_level_{d}")
            vertices.append(Vertex(name, (source,), (), Ref(source), v.type, messages={source: ERROR}, where=v.where))
            source = relays[v.name, d - 1] = name
    return replace(pc, vertices=tuple(vertices))


def _reading(v: Vertex, senders: Mapping[str, str]) -> Vertex:
    """`v` with other parents in the place of some."""
    if not senders:
        return v
    names = {Ref(a): Ref(b) for a, b in senders.items()}

    def renamed(n: Node) -> Node:
        args: dict[str, Arg] = {k: map_refs(a, lambda r: names.get(r, r)) for k, a in n.args.items()}
        return replace(n, args=args)

    return replace(
        v,
        parents=tuple(senders.get(p, p) for p in v.parents),
        prediction=tuple(map(renamed, v.prediction)),
        rules=tuple(map(renamed, v.rules)),
        messages={senders.get(p, p): names.get(m, m) for p, m in v.messages.items()},
        result=names.get(v.result, v.result),
    )
