r"""Let messages to values read other weights than predictions do, or leave out the slopes of activations.

For a vertex v̂ = φ(W x) with s as what it sends,

    transpose        to x: Wᵀ (φ′ ⊙ s)
    random           to x: Bᵀ (φ′ ⊙ s), B drawn once (Lillicrap et al. 2016, doi:10.1038/ncomms13276)
    sign             to x: B = sign(W) · rms(W), which has the norm of W (Liao, Leibo & Poggio 2016, arXiv:1510.05067)
    kolen-pollack    to x: B learns by the gradient of W, so that with the same weight decay λ in both W − B shrinks by
                     1 − ηλ in a step of size η (Akrout et al. 2019, arXiv:1904.05391)
    dkp              to x: Ψᵀ s_out, from the output itself: see passes.broadcast (arXiv:2602.15571)

and with derivatives dropped φ′ := 1 (Millidge et al. 2020, arXiv:2010.01047). What goes to W itself is (φ′ ⊙ s) xᵀ as
ever. B is written in the layout of W. A weight is any value that is computed from parameters alone, one of which
learns: its transpose, a cast, a norm of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pccompile.diagnostics import Collector, CompileError
from pccompile.ir import Arg, Feedback, Fragment, Graph, Node, PCGraph, Ref, TensorType, Vertex, map_refs
from pccompile.ir.names import Namer
from pccompile.ops import Backward, Builder, Typer, definition
from pccompile.passes.broadcast import BROADCAST, broadcast
from pccompile.passes.choices import DKP, DROPPED, EXACT, KOLEN_POLLACK, RANDOM, SIGN, TRANSPOSE
from pccompile.passes.derive_rules import derive_rules
from pccompile.passes.settle_presence import FUNCTION

COPIED = (RANDOM, KOLEN_POLLACK)
"""The kinds that bring a weight for each of the model's."""
LEAVES = (*COPIED, DKP)
"""The kinds that bring weights of their own."""
HOME = "feedback"
"""The path under which feedback weights have the paths of their weights, unless the model has something there."""


def with_feedback(pc: PCGraph, typer: Typer, kind: str, derivatives: str = EXACT, home: str = HOME) -> PCGraph:
    """`pc` with other messages to values: see above. home: where the new leaves are.

    Leaves of `random` are buffers, those of `kolen-pollack` and `dkp` parameters that learn. A weight that is
    multiplied by values begins as random numbers, any other, such as the gain of a norm, as a copy: see Feedback.
    Raises CompileError for operations inside of which nothing can be replaced, and for signs of complex weights.
    """
    if kind == TRANSPOSE and derivatives == EXACT:
        return pc
    plan = _Plan.of(pc, kind, derivatives, home)
    graph = replace(pc.graph, buffers={**pc.graph.buffers, **plan.leaf_types()}, origin=plan.origin)
    changed = derive_rules(replace(pc, graph=graph), typer, functools.partial(_Walk, plan))
    vertices = tuple(map(_neighbours, changed.vertices))
    read = {str(i) for v in vertices for n in v.rules for i in n.inputs}
    leaves = {leaf: of for of, leaf in plan.leaves.items() if leaf in read}
    learning = leaves if kind == KOLEN_POLLACK else {}
    rewired = replace(
        pc,
        graph=_with_leaves(pc.graph, plan, leaves, learning),
        vertices=tuple(_learning(v, learning) for v in vertices),
        reached=pc.reached | {leaf for leaf, of in learning.items() if of in pc.reached},
        decided={**pc.decided, **{leaf: pc.decided[of] for leaf, of in learning.items() if of in pc.decided}},
        feedback={leaf: Feedback(of, of in plan.drawn) for leaf, of in leaves.items()},
    )
    return broadcast(rewired, pc, plan.weights, typer, home) if kind == DKP else rewired


def _with_leaves(graph: Graph, plan: _Plan, leaves: Mapping[str, str], learning: Mapping[str, str]) -> Graph:
    """`graph` with the leaves that are read, those that learn as parameters."""
    types = plan.leaf_types()
    return replace(
        graph,
        params={**graph.params, **{leaf: types[leaf] for leaf in learning}},
        buffers={**graph.buffers, **{leaf: types[leaf] for leaf in leaves if leaf not in learning}},
        origin={**graph.origin, **{leaf: plan.origin[leaf] for leaf in leaves}},
        wanted=graph.wanted.union(learning),
    )


def _neighbours(v: Vertex) -> Vertex:
    """`v` with everything that its rules read as its parents."""
    own = {n.name for n in (*v.prediction, *v.rules)}
    read = (i for n in v.rules for i in n.inputs if i not in own and type(i) is Ref)
    return replace(v, parents=tuple(dict.fromkeys((*v.parents, *map(str, read)))))


def _learning(v: Vertex, learning: Mapping[str, str]) -> Vertex:
    """`v`, sending each leaf that learns what it sends the weight that it stands for."""
    more = {leaf: v.messages[of] for leaf, of in learning.items() if of in v.messages}
    parents = tuple(dict.fromkeys((*v.parents, *more)))
    return replace(v, messages={**v.messages, **more}, parents=parents)


@dataclass
class _Plan:
    """What is replaced.

    weights: values that are computed from parameters alone, one of which learns. leaves: for each parameter that does,
    the leaf that can stand for it. drawn: the parameters whose leaves begin as random numbers.
    """

    kind: str
    dropped: bool
    types: Mapping[str, Any]
    nodes: Mapping[str, Node]
    weights: frozenset[str]
    leaves: Mapping[str, str]
    drawn: frozenset[str]
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, pc: PCGraph, kind: str, derivatives: str, home: str) -> _Plan:
        graph = pc.graph
        nodes = {n.name: n for n in graph.nodes}
        weights = _weights(graph)
        rules = (n.name for v in pc.vertices for n in v.rules)
        namer = Namer((*graph.leaves, *nodes, *pc.names, *graph.dims, *rules))
        learning = [p for p in graph.params if p in weights] if kind in COPIED else []
        leaves = {p: namer(f"feedback_{p}") for p in learning}
        origin = {**graph.origin, **{leaf: f"{home}.{graph.origin[p]}" for p, leaf in leaves.items()}}
        types = {**graph.types, **{leaf: graph.params[p] for p, leaf in leaves.items()}}
        drawn = _drawn(graph, nodes, weights)
        return cls(kind, derivatives == DROPPED, types, nodes, weights, leaves, drawn, origin)

    def leaf_types(self) -> dict[str, TensorType]:
        """The types of all leaves that may be read."""
        return {leaf: self.types[leaf] for leaf in self.leaves.values()}


def _weights(graph: Graph) -> frozenset[str]:
    """The values that are computed from parameters alone, buffers and draws besides, one of which learns."""
    moved, learned = set(graph.inputs), {p for p in graph.wanted if p in graph.params}
    for n in graph.nodes:
        if any(i in moved for i in n.inputs):
            moved.add(n.name)
        elif any(i in learned for i in n.inputs):
            learned.add(n.name)
    return frozenset(learned)


def _drawn(graph: Graph, nodes: Mapping[str, Node], weights: frozenset[str]) -> frozenset[str]:
    """The parameters that are multiplied by values: by themselves, or as matrices within what is."""
    parameters: set[str] = set()
    for n in graph.nodes:
        multiplies = definition(n.op).family == "multilinear" or definition(n.op).recurrent
        if multiplies and n.name not in weights:
            for w in {i for i in n.inputs if i in weights and i not in _added(n)}:
                parameters |= _matrices(str(w), graph, nodes, weights)
    return frozenset(parameters)


def _matrices(name: str, graph: Graph, nodes: Mapping[str, Node], weights: frozenset[str]) -> set[str]:
    """The parameters that a weight is, or that stand in it as matrices."""
    parameters, waiting, seen, alone = set[str](), [name], set[str](), True
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        if at in graph.params:
            wide = sum(not isinstance(d, int) or d > 1 for d in graph.params[at].shape) > 1
            parameters |= {at} if at in weights and (wide or alone) else set()
        elif at in nodes:
            before = [i for i in dict.fromkeys(nodes[at].inputs) if i in weights]
            alone = alone and len(before) == 1
            waiting += map(str, before)
    return parameters


def _added(n: Node) -> set[str]:
    """The biases of an operation, which no message to a value depends on."""
    return {str(a) for k, a in n.args.items() if k in BIASES and isinstance(a, Ref)}


BIASES = ("bias", "b_ih", "b_hh")
"""What arguments are called that an operation adds."""


class _Walk(Backward):
    """Messages of one vertex, as a plan has them."""

    def __init__(self, plan: _Plan, b: Builder, arrived: Mapping[str, Any], problems: Collector) -> None:
        super().__init__(b, arrived, problems)
        self.plan = plan
        self.stands: dict[str, Ref] = {}

    def messages(self, node: Node, err: Any) -> Mapping[str, Any]:
        """What the operation's rule sends, to values with other weights in it."""
        known = definition(node.op)
        opaque = _opaque(node)
        if self.plan.dropped and node.name not in self.plan.weights:
            if opaque:
                raise _refusal(node, "its slopes cannot be left out")
            if known.activation:
                with self.wanting(self.b.wants - {node["self"]}):
                    sent = super().messages(node, err) if any(i in self.b.wants for i in node.inputs) else {}
                self.how[node.name] = DROPPED
                return {**sent, "self": err} if node["self"] in self.b.wants else sent
        if self.plan.kind == DKP and self.reads_weights(node):
            if opaque:
                raise _refusal(node, "the weights inside cannot be passed by")
            if known.product:
                return self.to_weights(node, err)
        swapped = self.swapped(node)
        if swapped is None:
            return super().messages(node, err)
        if opaque and not known.recurrent:
            raise _refusal(node, "the weights inside cannot be replaced")
        values = {i for i in node.inputs if i in self.b.wants and i not in self.plan.weights}
        if known.recurrent:
            learning = {self.stands[w] for w in node.inputs if w in self.stands and w in self.b.wants}
            biases = _added(node)
            with self.wanting(values | learning | biases):
                return super().messages(swapped, err)
        return self.both(node, swapped, err, values)

    def both(self, node: Node, swapped: Node, err: Any, values: set[Any]) -> Mapping[str, Any]:
        """Messages to values, by the rule with other weights, and to weights, by the rule as it is."""
        wants = self.b.wants
        with self.wanting(values):
            sent = dict(super().messages(swapped, err))
        learning = {i for i in node.inputs if i in wants and i in self.plan.weights}
        if learning:
            with self.wanting(learning):
                for argument, message in super().messages(node, err).items():
                    sent[argument] = _first(sent.get(argument), message)
        return sent

    def reads_weights(self, node: Node) -> bool:
        """Whether an operation multiplies a value that takes a message by a weight."""
        factors = (i for i in node.inputs if i not in _added(node))
        weighs = any(i in self.plan.weights for i in factors) and node.name not in self.plan.weights
        return weighs and any(self.takes(i) for i in node.inputs)

    def to_weights(self, node: Node, err: Any) -> Mapping[str, Any]:
        """Messages to weights alone: values get theirs from the outputs."""
        learning = {i for i in node.inputs if i in self.b.wants and i in self.plan.weights}
        with self.wanting(learning):
            sent = super().messages(node, err) if learning else {}
        self.how[node.name] = BROADCAST
        return sent

    @contextmanager
    def wanting(self, names: set[Any]) -> Any:
        """Within, rules write messages to these names alone."""
        wants, self.b.wants = self.b.wants, set(names)
        try:
            yield
        finally:
            self.b.wants = wants

    def swapped(self, node: Node) -> Node | None:
        """`node` with other weights; None where no message to a value reads a weight, or none is to be replaced."""
        weights = [i for i in dict.fromkeys(node.inputs) if i in self.plan.weights]
        known = definition(node.op)
        if self.plan.kind in (TRANSPOSE, DKP) or node.name in self.plan.weights or not weights:
            return None
        if known.family == "linear" or not (known.recurrent or any(self.takes(i) for i in node.inputs)):
            return None
        biases, ruled = _added(node), known.rule is not None
        for w in weights:
            if w not in biases and not _opaque(node, but=known.recurrent):
                self.stand(w)

        def other(name: Ref) -> Arg:
            return self.stands.get(name, name)

        args = {k: None if k == "bias" and ruled and a in weights else map_refs(a, other) for k, a in node.args.items()}
        return replace(node, args=args)

    def takes(self, name: Ref) -> bool:
        """Whether a value takes a message."""
        return name in self.b.wants and name not in self.plan.weights

    def stand(self, weight: Ref) -> Ref:
        """What stands in the place of a weight, written where it has to be."""
        if weight not in self.stands:
            if self.plan.kind == SIGN:
                self.stands[weight] = self.signs(weight)
                self.feedback[weight] = "sign(W)"
            else:
                self.stands[weight] = self.copied(weight)
                self.feedback[weight] = "B"
        return self.stands[weight]

    def signs(self, weight: Ref) -> Ref:
        """sign(W) times the root of the mean square of W."""
        b = self.b
        if b.type(weight).dtype.is_complex:
            raise CompileError(f"feedback sign: {weight} is complex", b.where, 'take feedback="random"')
        square = b("aten.mean.default", b.mul(weight, weight))
        return b.mul(b("aten.sign.default", weight), b("aten.sqrt.default", square))

    def copied(self, name: Ref) -> Ref:
        """What computes a weight, with leaves in the places of the parameters that learn."""
        self.b.types.setdefault(name, self.plan.types[name])
        if name not in self.plan.weights:
            return name
        if name in self.plan.leaves:
            leaf = Ref(self.plan.leaves[name])
            self.b.types.setdefault(leaf, self.plan.types[leaf])
            return leaf
        if name not in self.stands:
            node = self.plan.nodes[name]
            self.stands[name] = self.b(node.op, *(map_refs(a, self.copied) for a in node.args.values()))
        return self.stands[name]


def _first(one: Any, other: Any) -> Any:
    """The message that is there; of several tensors at once, each that is there."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(_first(a, b) for a, b in zip(one, other, strict=True))
    return other if one is None else one


def _opaque(node: Node, but: bool = False) -> bool:
    """Whether an operation has a program, slopes or weights inside that no rule shows."""
    inside = node.op == FUNCTION or any(isinstance(a, Fragment) for a in node.args.values())
    return inside or (not but and definition(node.op).recurrent)


def _refusal(node: Node, why: str) -> CompileError:
    kind = node.op.split(".")[1] if "." in node.op else node.op
    return CompileError(f"feedback: {kind} {node.name} is one operation, {why}", node.where, HINT)


HINT = 'write it step by step, with cells and layers, or take feedback="transpose" and derivatives="exact"'
