"""Which values carry an error: those that a wanted parameter or input can change and that reach an output."""

from __future__ import annotations

from collections.abc import Collection

from pccompile.ir import Graph, Node, TensorType, Type
from pccompile.ops import definition
from pccompile.ops.functions import STOP

STOPS = frozenset((STOP,))


def differentiable(node: Node) -> bool:
    """Whether a result of `node` can carry an error."""
    types = node.type if isinstance(node.type, tuple) else (node.type,)
    return any(isinstance(t, TensorType) and t.differentiable for t in types)


def passes_on(node: Node) -> bool:
    """Whether an error at a result of `node` goes on to its arguments."""
    return node.op not in STOPS and definition(node.op).family != "context" and differentiable(node)


def gradient_ends(graph: Graph) -> list[Node]:
    """The operations behind which no error arrives, though they read what a wanted value changes."""
    moved, ends = set(graph.wanted), []
    for n in graph.nodes:
        if any(i in moved for i in n.inputs):
            if passes_on(n):
                moved.add(n.name)
            else:
                ends.append(n)
    return ends


def active(graph: Graph) -> frozenset[str]:
    """The names of values that carry an error, wanted leaves included."""
    moved = set(graph.wanted)
    for n in graph.nodes:
        if passes_on(n) and any(i in moved for i in n.inputs):
            moved.add(n.name)
    reaching = set(graph.outputs)
    for n in reversed(graph.nodes):
        if n.name in reaching and n.name in moved:
            reaching.update(n.inputs)
    return frozenset(moved & reaching)


def fixed(graph: Graph) -> frozenset[str]:
    """The names of values that no inference step changes: leaves, what follows from them alone, and random draws."""
    carrying = active(graph)
    still = set(graph.leaves)
    late = {name for name, source in graph.dims.items() if source.tensor not in still}
    for n in graph.nodes:
        drawn = definition(n.op).family == "context" or _data_dependent(n.type, late)
        if n.name not in carrying and (drawn or all(i in still for i in n.inputs)):
            still.add(n.name)
    return frozenset(still)


def _data_dependent(type_: Type, late: Collection[str]) -> bool:
    """Whether the shape of a single tensor holds one of the lengths that are known only once the model has run."""
    if not isinstance(type_, TensorType):
        return False
    return any(str(s) in late for d in type_.shape if not isinstance(d, int) for s in d.free_symbols)
