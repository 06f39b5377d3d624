"""Derive every vertex's messages to its parents from its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pccompile.diagnostics import Collector
from pccompile.ir import ERROR, Arg, Node, PCGraph, Ref, TensorType, Vertex, live, refs
from pccompile.ops import OPS, Builder, Typer, family_of, traced_rule
from pccompile.passes.activity import STOPS, active


def derive_rules(pc: PCGraph, typer: Typer) -> PCGraph:
    """Fill in `rules` and `messages`: for a vertex with prediction f, J_pᵀ err for each parent p that carries an error.

    Raises CompileError with every operation for which torch has no derivative.
    """
    carrying = active(pc.graph)
    types = pc.graph.types
    problems = Collector()
    vertices = tuple(_Deriver(v, types, carrying, typer, problems).run() for v in pc.vertices)
    problems.raise_if_any()
    return replace(pc, vertices=vertices)


class _Deriver:
    """Walks a vertex's prediction backwards and adds up what reaches each value."""

    def __init__(
        self, vertex: Vertex, types: Mapping[str, Any], carrying: frozenset[str], typer: Typer, problems: Collector
    ) -> None:
        self.vertex, self.problems = vertex, problems
        own = {n.name: n.type for n in vertex.prediction}
        known = {p: types[p] for p in vertex.parents} | own | {ERROR: vertex.type}
        self.b = Builder(known, typer, f"{vertex.name}_", vertex.where)
        self.b.wants = {name for name in known if name in carrying}
        self.arrived: dict[str, Any] = {vertex.result: ERROR}
        self.how: dict[str, str] = {}

    def run(self) -> Vertex:
        for n in reversed(self.vertex.prediction):
            if n.name in self.arrived and n.name in self.b.wants and n.op not in STOPS:
                self.back(n)
        messages = {p: self.arrived[p] for p in self.vertex.parents if p in self.arrived and p in self.b.wants}
        rules = live((*self.vertex.prediction, *self.b.nodes), messages.values())
        return replace(self.vertex, rules=tuple(n for n in rules if n in self.b.nodes), messages=messages, how=self.how)

    def back(self, node: Node) -> None:
        """Send what has arrived at `node` on to its arguments."""
        err = self.arrived[node.name]
        if node.op == "getitem":
            source, index = node["of"], node["index"]
            count = len(self.b.types[source])  # type: ignore[arg-type]
            whole = self.arrived.setdefault(str(source), [None] * count)
            whole[index] = self.added(whole[index], err)
            return
        err = tuple(err) if isinstance(err, list) else err
        self.how[node.name] = family_of(node.op)
        try:
            messages = self.messages(node, err)
        except (RuntimeError, NotImplementedError) as e:
            line = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            self.problems.add(
                f"no rule for {node.op}: {line}", node.where, "detach its result, or compute it outside the model"
            )
            return
        for argument, message in messages.items():
            self.deliver(node[argument], message)

    def messages(self, node: Node, err: Any) -> Mapping[str, Any]:
        """What the operation's rule sends; torch's own derivative where the rule leaves out an argument that waits."""
        definition = OPS.get(node.op)
        if definition and definition.rule:
            sent = definition.rule(self.b, node, err)
            if all(name in sent for name, a in node.args.items() if any(r in self.b.wants for r in refs([a]))):
                return sent
            self.how[node.name] = "traced"
        return traced_rule(self.b, node, err)

    def deliver(self, argument: Arg, message: Any) -> None:
        """Add a message to what has arrived at an argument; broadcasting and promotion are undone here."""
        if isinstance(argument, tuple):
            for a, m in zip(argument, message or (None,) * len(argument), strict=True):
                self.deliver(a, m)
        elif isinstance(argument, Ref) and message is not None and argument in self.b.wants:
            type_ = self.b.types[argument]
            if isinstance(type_, TensorType):
                message = self.b.reduce_to(message, type_)
            self.arrived[argument] = self.added(self.arrived.get(argument), message)

    def added(self, old: Ref | None, new: Ref) -> Ref:
        return new if old is None else self.b("aten.add.Tensor", old, new)
