r"""Direct feedback: an output's error goes straight to every value that a weight multiplies, and through no weight.

For a value x that is read by W x, what its reader would send, Wᵀ(φ′ ⊙ s), is replaced by

    Ψᵀ s_out        Ψ: [output, x], one sample of each as a row        ∂F/∂Ψ = −s_out xᵀ

so that with the weight decay that the weights have Ψ tends to what x makes of the output (direct Kolen-Pollack,
arXiv:2602.15571; direct feedback alignment with a Ψ that learns). Messages through anything but a weight, an
activation, a norm, a skip connection or attention's product of queries and keys, stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pccompile.diagnostics import Collector, CompileError, Location, RuleError
from pccompile.ir import ERROR, Dim, Feedback, Node, PCGraph, Ref, TensorType, Type, Vertex, live, map_refs
from pccompile.ir.names import Namer
from pccompile.ops import Backward, Builder, Typer, definition
from pccompile.ops.equations import short
from pccompile.passes.activity import active

BROADCAST = "broadcast"
"""How the rule of a product with a weight is derived: its messages to values come from the output."""
HINT = 'feedback="kolen-pollack" sends messages from layer to layer'


def broadcast(pc: PCGraph, whole: PCGraph, weights: frozenset[str], typer: Typer, home: str) -> PCGraph:
    """`pc`, in which products send nothing to values, with messages from the outputs in their place.

    whole: the same vertices with all messages. weights: the values that are computed of parameters alone.
    Raises CompileError for a value whose samples have no fixed shape, and for layers that are no vertices.
    """
    routes = _routes(pc, whole, weights)
    pairs = [_Pair.of(pc, route, o, home) for route in routes for o in whole.clamped if o in route.outputs]
    namer = Namer((*pc.graph.leaves, *(n.name for n in pc.graph.nodes), *pc.names, *pc.graph.dims))
    namer.used |= {n.name for v in pc.vertices for n in v.rules}
    leaves = {namer(f"feedback_{pair.route.to}"): pair for pair in pairs}
    types = {leaf: pair.type for leaf, pair in leaves.items()}
    graph = replace(
        pc.graph,
        params={**pc.graph.params, **types},
        origin={**pc.graph.origin, **{leaf: pair.path for leaf, pair in leaves.items()}},
        wanted=pc.graph.wanted.union(leaves),
    )
    known = replace(pc, graph=graph)
    return replace(
        known,
        vertices=tuple(_sending(known, v, leaves, typer, namer) for v in pc.vertices),
        reached=pc.reached.union(leaves),
        feedback={**pc.feedback, **{leaf: Feedback("", True, direct=pair.route.to) for leaf, pair in leaves.items()}},
    )


@dataclass
class _Route:
    """A value that weights read, how it is wired to values of vertices and inputs, and the outputs behind its readers.

    ends: those vertices and inputs, as far as they take messages.
    """

    to: str
    where: Location
    wiring: tuple[Node, ...]
    ends: tuple[str, ...]
    outputs: frozenset[str]


def _routes(pc: PCGraph, whole: PCGraph, weights: frozenset[str]) -> list[_Route]:
    """The values whose messages would have passed a product. Raises CompileError where a vertex holds whole layers."""
    carrying, outputs, routes = active(whole.graph), _outputs(whole), dict[str, _Route]()
    for v in pc.vertices:
        inner = {n.name: n for n in v.prediction}
        for n in v.prediction:
            for i in n.inputs if v.how.get(n.name) == BROADCAST else ():
                if i not in weights and i in carrying:
                    to = _place(pc, inner, i, carrying)
                    wiring = live(v.prediction, [to]) if to in inner else ()
                    for w in live(v.prediction, [i]) if i in inner else ():
                        if w.name in carrying and w.op != "getitem" and definition(w.op).family != "linear":
                            raise _inside(v, w)
                    read = dict.fromkeys((*(str(r) for w in wiring for r in w.inputs), *([] if wiring else [str(to)])))
                    ends = tuple(r for r in read if r in carrying and r not in inner and r not in weights)
                    route = routes.setdefault(str(to), _Route(str(to), v.where, wiring, ends, frozenset()))
                    route.outputs |= outputs[v.name]
    return [*routes.values()]


def _place(pc: PCGraph, inner: Mapping[str, Node], read: Ref, carrying: frozenset[str]) -> Ref:
    """Where on the way to what a weight reads it is told: the earliest value with as many entries, samples first."""
    types, way = pc.graph.types, [read]
    while (n := inner.get(way[-1])) and len(before := [i for i in n.inputs if i in carrying]) == 1:
        way.append(before[0])
    samples = {v.type.shape[0] for v in pc.vertices if v.name in pc.clamped and v.type.shape}
    entries = _entries(types[read])
    for name in reversed(way):
        type_ = types[name]
        first = isinstance(type_, TensorType) and type_.shape and type_.shape[0] in samples
        if first and entries == _entries(type_):
            return name
    return read


def _entries(type_: Type) -> Dim:
    """The number of entries of a value."""
    assert isinstance(type_, TensorType)
    return Builder.numel(type_.shape)


def _inside(v: Vertex, n: Node) -> CompileError:
    what = (
        f"feedback dkp: {short(n.op)} in front of a weight is inside vertex {v.name}, so that no output can send to it"
    )
    return CompileError(what, v.where, 'take granularity="layer" or "op"')


def _outputs(pc: PCGraph) -> dict[str, frozenset[str]]:
    """The outputs that each vertex leads to, itself where it is one."""
    children, outputs = pc.children(), dict[str, frozenset[str]]()
    for name in reversed(pc.names):
        behind = frozenset[str]().union(*(outputs[c.name] for c in children[name]))
        outputs[name] = behind | (frozenset((name,)) if name in pc.clamped else frozenset())
    return outputs


@dataclass(frozen=True)
class _Pair:
    """A value, the output that sends to it, and their weight: where it is, and its type."""

    route: _Route
    output: str
    path: str
    type: TensorType

    @classmethod
    def of(cls, pc: PCGraph, route: _Route, output: str, home: str) -> _Pair:
        """Raises CompileError where samples are not what comes first, RuleError where one has no fixed shape."""
        own, other = pc.graph.types[route.to], next(v.type for v in pc.vertices if v.name == output)
        assert isinstance(own, TensorType)
        if not own.shape or not other.shape or own.shape[0] != other.shape[0]:
            what = f"feedback dkp: {route.to}, {own}, and the output {output}, {other}, do not begin with the samples"
            raise CompileError(what, route.where, HINT)
        for name, type_ in ((route.to, own), (output, other)):
            if not all(isinstance(d, int) for d in type_.shape[1:]):
                what = f"feedback dkp: a sample of {name} has no fixed shape, {type_}"
                raise RuleError(what, route.where, f"fix its lengths by dynamic_shapes={{}}; {HINT}")
        rows, columns = (int(Builder.numel(t.shape[1:])) for t in (other, own))
        return cls(route, output, f"{home}.{route.to}.{output}", replace(own, shape=(rows, columns)))


def _sending(pc: PCGraph, v: Vertex, leaves: Mapping[str, _Pair], typer: Typer, namer: Namer) -> Vertex:
    """`v` with what it sends the values that it is told to, and their weights."""
    own = {leaf: pair for leaf, pair in leaves.items() if pair.output == v.name}
    if not own:
        return v
    inner = {n.name for pair in own.values() for n in pair.route.wiring}
    read = (str(i) for pair in own.values() for n in pair.route.wiring for i in n.inputs if i not in inner)
    ends = dict.fromkeys(e for pair in own.values() for e in pair.route.ends)
    parents = tuple(dict.fromkeys((*v.parents, *read, *ends, *own)))
    types = {p: pc.graph.types[p] for p in parents if p in pc.graph.types} | {w.name: w.type for w in pc.vertices}
    types |= {n.name: n.type for n in (*v.prediction, *v.rules)} | {ERROR: v.type}
    b = Builder(types, typer, f"{v.name}_direct_", v.where)
    b.reserved, b.wants = namer.used, set(ends)
    messages, batch = dict(v.messages), v.type.shape[0]
    for leaf, pair in own.items():
        count, columns = pair.type.shape
        rows = b.view(ERROR, (batch, count))
        if v.type.dtype != pair.type.dtype:
            rows = b("aten._to_copy.default", rows, dtype=pair.type.dtype)
        value = _wired(b, pair.route)
        sent = b.view(b("aten.mm.default", rows, Ref(leaf)), b.shape(value))
        for end, message in _unwired(b, pair.route, value, sent).items():
            messages[end] = b("aten.add.Tensor", messages[end], message) if end in messages else message
        transposed = b("aten.t.default", rows)
        messages[leaf] = b("aten.mm.default", transposed, b.view(value, (batch, columns)))
    namer.used |= {n.name for n in b.nodes}
    rules = tuple(n for n in live((*v.prediction, *v.rules, *b.nodes), messages.values()) if n not in v.prediction)
    said = {**v.feedback, **dict.fromkeys(ends, "Ψ")}
    return replace(v, parents=parents, rules=rules, messages=messages, feedback=said)


def _wired(b: Builder, route: _Route) -> Ref:
    """The value that weights read, of those of vertices."""
    values: dict[Ref, Ref] = {}
    for n in route.wiring:
        values[Ref(n.name)] = b(n.op, *(map_refs(a, lambda r: values.get(r, r)) for a in n.args.values()))
    return values.get(Ref(route.to), Ref(route.to))


def _unwired(b: Builder, route: _Route, value: Ref, sent: Ref) -> dict[str, Ref]:
    """A message to that value as messages to those of vertices: back through the wiring."""
    if not route.wiring:
        return {route.to: sent}
    nodes, wants, problems = tuple(b.nodes), b.wants, Collector()
    inner = {n.name for n in nodes}
    b.wants = {*route.ends, *inner}
    arrived = Backward(b, {value: sent}, problems).run(n for n in nodes if n.name in inner)
    problems.raise_if_any()
    b.wants = wants
    return {end: arrived[end] for end in route.ends if end in arrived}
