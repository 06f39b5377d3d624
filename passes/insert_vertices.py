"""Give the model its value and error nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from pccompile.diagnostics import CompileError, listing
from pccompile.ir import ALWAYS, Graph, Node, Output, PCGraph, Ref, TensorType, Vertex
from pccompile.ir.names import Namer
from pccompile.ops import definition
from pccompile.passes.activity import active, fixed, gradient_ends
from pccompile.passes.choices import GRANULARITIES
from pccompile.passes.decisions import decisions

SCALED = "aten.mul.Tensor"
"""A parameter times what stands still is no value that inference could move: it belongs to what reads it."""


def insert_vertices(graph: Graph, *, granularity: str = "op", marked: Set[str] | None = None) -> PCGraph:
    """One vertex for each operation ("op"), each layer with what follows it pointwise ("layer"), or each output.

    marked: the values that are vertices, whatever the granularity says of them and of all others.

    Wiring has no value of its own: it belongs to the vertices that read it. The same holds for what carries no error
    but depends on values that do, such as a mask computed from them. An output that other vertices read, or that is no
    operation, gets a vertex of its own, so that outputs have no children.
    Raises CompileError for an unknown granularity, and where no output depends on anything that learns.
    """
    if granularity not in GRANULARITIES:
        raise CompileError(f"unknown granularity {granularity!r}", hint=f"one of {', '.join(GRANULARITIES)}")
    position = {n.name: i for i, n in enumerate(graph.nodes)}
    plan = _Plan(graph, active(graph), fixed(graph), {n.name: n for n in graph.nodes}, position)
    inner = plan.wired()
    marked = set(graph.outputs) if granularity == "output" and marked is None else marked
    if marked is not None:
        inner = {n.name for n in graph.nodes if n.name in plan.carrying and n.name not in marked}
    elif granularity == "layer":
        inner |= plan.absorbed(inner)
    vertices = [plan.vertex(n, inner) for n in graph.nodes if n.name in plan.carrying and n.name not in inner]
    read = {p for v in vertices for p in v.parents}
    namer, outputs = Namer((*graph.leaves, *plan.nodes, *graph.dims)), []
    for o in dict.fromkeys(graph.outputs):
        if o not in plan.carrying:
            continue
        if o in plan.nodes and o not in read:
            outputs.append(Output(o, o))
            continue
        type_ = graph.types[o]
        assert isinstance(type_, TensorType)
        outputs.append(Output(o, namer(f"{o}_output")))
        vertices.append(Vertex(outputs[-1].vertex, (o,), (), Ref(o), type_))
    if not outputs:
        raise _nothing_learns(graph)
    context = tuple(n for n in graph.nodes if n.name in plan.still)
    decided = decisions(graph)
    reached = frozenset(name for name in graph.wanted & plan.carrying if decided.get(name, ALWAYS))
    return PCGraph(graph, tuple(vertices), context, tuple(outputs), reached, decided)


def _nothing_learns(graph: Graph) -> CompileError:
    """The error for a graph without a path from what is wanted to an output, naming what cuts the paths."""
    if not graph.wanted:
        hint = "are its weights whole numbers, or frozen? An input that requires a gradient will do, too"
        return CompileError("the model has no parameter that learns", hint=hint)
    ends = gradient_ends(graph)
    places = dict.fromkeys(f"{n.op.split('.')[1]}{f' at {n.where}' if str(n.where) else ''}" for n in ends)
    hint = f"the derivative is 0 behind {listing(places)}" if places else "is every parameter frozen or detached?"
    return CompileError("no output depends on a parameter that learns", hint=hint)


@dataclass(frozen=True)
class _Plan:
    graph: Graph
    carrying: frozenset[str]
    still: frozenset[str]
    nodes: dict[str, Node]
    position: dict[str, int]

    def wired(self) -> set[str]:
        """Nodes without a value of their own."""
        found, moved = set(), set(self.graph.inputs)
        for n in self.graph.nodes:
            moved |= {n.name} if any(i in moved for i in n.inputs) else set()
            scaled = n.op == SCALED and n.name not in moved and sum(i in self.carrying for i in n.inputs) == 1
            if n.name in self.carrying and scaled and n.name not in self.graph.outputs:
                found.add(n.name)
            wiring = definition(n.op).wiring and n.name not in self.graph.outputs
            if n.name in self.carrying and (wiring or isinstance(n.type, tuple)):
                found.add(n.name)
        return found

    def absorbed(self, inner: set[str]) -> set[str]:
        """Vertices that belong to the one that reads them: the linear part of a layer, before its nonlinearity."""
        fragments = {n.name: self.fragment(n, inner) for n in self.graph.nodes if n.name in self.carrying - inner}
        readers = Counter(p for f in fragments.values() for p in set(_parents(f)))
        found = set()
        for fragment in fragments.values():
            above = [p for p in _parents(fragment) if p in fragments]
            if (
                len(set(above)) == 1
                and readers[above[0]] == 1
                and above[0] not in self.graph.outputs
                and _pointwise(fragment)
            ):
                found.add(above[0])
        return found

    def fragment(self, node: Node, inner: set[str]) -> tuple[Node, ...]:
        """`node` and what it needs down to the values of other vertices, leaves and context."""
        found, open_ = {node.name}, [node]
        while open_:
            for i in open_.pop().inputs:
                if (
                    i in self.nodes
                    and i not in found
                    and i not in self.still
                    and (i in inner or i not in self.carrying)
                ):
                    found.add(i)
                    open_.append(self.nodes[i])
        return tuple(self.nodes[name] for name in sorted(found, key=self.position.__getitem__))

    def vertex(self, node: Node, inner: set[str]) -> Vertex:
        """The vertex whose value is the result of `node`."""
        fragment = self.fragment(node, inner)
        return Vertex(node.name, _parents(fragment), fragment, Ref(node.name), node.tensor, where=node.where)


def _parents(fragment: tuple[Node, ...]) -> tuple[str, ...]:
    own = {n.name for n in fragment}
    return tuple(dict.fromkeys(i for n in fragment for i in n.inputs if i not in own))


def _pointwise(fragment: tuple[Node, ...]) -> bool:
    """Whether a fragment is what a layer ends with: a nonlinearity, a normalisation or a softmax, with its wiring."""
    working = [n for n in fragment if not definition(n.op).wiring and n.op != "getitem"]
    return all(definition(n.op).family == "elementwise" or definition(n.op).ends_layer for n in working)
