"""Derive every vertex's messages to its parents from its prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pccompile.diagnostics import Collector, RuleError
from pccompile.ir import ERROR, PCGraph, Vertex, live
from pccompile.ops import Backward, Builder, Typer
from pccompile.passes.activity import active

Walk = Callable[[Builder, Mapping[str, Any], Collector], Backward]
"""What walks a prediction backwards."""


def derive_rules(pc: PCGraph, typer: Typer, walk: Walk = Backward) -> PCGraph:
    """Fill in `rules` and `messages`: for a vertex with prediction f, J_pᵀ err for each parent p that carries an error.

    walk: what sends an error back through the operations of a vertex.
    Raises RuleError with every operation for which torch has no derivative.
    """
    carrying = active(pc.graph)
    types = pc.graph.types
    problems = Collector()
    used = {*types, *pc.names, *pc.graph.dims}
    vertices = tuple(_derived(v, types, carrying, typer, problems, used, walk) for v in pc.vertices)
    problems.raise_if_any(RuleError)
    return replace(pc, vertices=vertices)


def _derived(
    vertex: Vertex,
    types: Mapping[str, Any],
    carrying: frozenset[str],
    typer: Typer,
    problems: Collector,
    used: set[str],
    walk: Walk,
) -> Vertex:
    """A vertex with its rules, from its prediction walked backwards; their names are added to those `used`."""
    own = {n.name: n.type for n in vertex.prediction}
    known = {p: types[p] for p in vertex.parents} | own | {ERROR: vertex.type}
    b = Builder(known, typer, f"{vertex.name}_", vertex.where)
    b.reserved = used
    b.wants = {name for name in known if name in carrying}
    backward = walk(b, {vertex.result: ERROR}, problems)
    arrived = backward.run(vertex.prediction)
    messages = {p: arrived[p] for p in vertex.parents if p in arrived and p in b.wants}
    new = {n.name for n in b.nodes}
    used |= new
    rules = live((*vertex.prediction, *b.nodes), messages.values())
    kept = tuple(n for n in rules if n.name in new)
    said: dict[str, Any] = {"how": backward.how, "unsent": frozenset(backward.unsent), "feedback": backward.feedback}
    return replace(vertex, rules=kept, messages=messages, **said)
