"""Which outputs the gradients of a program depend on, and which are behind the results of custom Functions."""

from __future__ import annotations

from pccompile.ir import Node
from pccompile.ops.functions import Saved
from pccompile.passes.activity import passes_on
from pccompile.passes.settle_presence import FUNCTION, parts
from pccompile.passes.stop_unsent import unsent
from pccompile.pipeline import Compiled


def reaching(compiled: Compiled) -> dict[str, frozenset[int]]:
    """For each gradient, the clamped outputs that it depends on, be it by a derivative of 0; none for no gradient.

    Leaves that are not the model's own, such as feedback weights, get one wherever a vertex that reads them sends.
    """
    pc = compiled.pc
    if unsent(pc):
        return dict.fromkeys((g.key for g in compiled.source.gradients), frozenset())
    children, clamped = pc.children(), {name: frozenset((i,)) for i, name in enumerate(pc.clamped)}
    sent: dict[str, frozenset[int]] = {}
    for v in reversed(pc.vertices):
        own = clamped.get(v.name, frozenset[int]())
        sent[v.name] = own.union(*(sent[c.name] for c in children[v.name]))
    behind = _behind(compiled)
    found = {}
    for g in compiled.source.gradients:
        found[g.key] = behind.get(g.name) or frozenset[int]().union(*(sent[c.name] for c in children[g.name]))
    every = frozenset(range(len(pc.outputs)))
    return {key: outputs or every for key, outputs in found.items()}


def _behind(compiled: Compiled) -> dict[str, frozenset[int]]:
    """For each value of the graph, the clamped outputs that autograd would come from to it."""
    found: dict[str, frozenset[int]] = {}
    for i, o in enumerate(compiled.pc.outputs):
        found[o.value] = found.get(o.value, frozenset()) | {i}
    for n in reversed(compiled.graph.nodes):
        for name in n.inputs if n.name in found and passes_on(n) else ():
            found[name] = found.get(name, frozenset()) | found[n.name]
    return found


def asking(compiled: Compiled) -> dict[str, tuple[frozenset[int], ...]]:
    """For each custom Function whose backward asks which gradients are there, the outputs behind its results."""
    graph = compiled.graph
    behind, found = _behind(compiled), dict[str, tuple[frozenset[int], ...]]()
    for n in reversed(graph.nodes):
        if n.name in behind and n.op == FUNCTION and not _materializes(n):
            sets = {behind.get(part, frozenset()) for _, part in parts(graph, n)} - {frozenset()}
            found |= {str(n.args["saved"]): tuple(sets)} if len(sets) > 1 else {}
    return found


def _materializes(node: Node) -> bool:
    saved = node["saved"]
    assert isinstance(saved, Saved)
    return saved.materialize


__all__ = ["asking", "reaching"]
