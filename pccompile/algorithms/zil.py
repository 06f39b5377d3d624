r"""Zero-divergence inference learning: strict inference with a clock gives backpropagation.

Values move by whole steps, η = 1, from the forward pass. At step t = d, the edges of the longest path from a vertex to
an output, its parents have not moved yet and its children's errors have just become those of backpropagation: then, and
only then, its parameters learn (Song et al. 2020, arXiv:2103.04689 for any graph). Edges that skip levels go through
identities, without which the errors meet at different times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pccompile.algorithms.common import FORCE, each, learners, refuse_draws
from pccompile.algorithms.record import Algorithm, setting
from pccompile.diagnostics import CompileError
from pccompile.ir import ERROR, Arg, Do, Node, PCGraph, Program, Ref, Step, Vertex, map_refs
from pccompile.ir.names import Namer


@dataclass(frozen=True)
class Settings:
    """What is computed of the dynamics."""

    dynamics: Literal["wavefront", "full"] = setting(
        "wavefront", "each vertex until it has learned, or all vertices at all steps as hardware would"
    )


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Steps 0 to the depth of the graph. Raises CompileError for samples that move, and for direct feedback."""
    refuse_draws(pc)
    if any(f.direct for f in pc.feedback.values()):
        what = "zil: all hidden values are one edge from an output that sends to them, and move before others learn"
        raise CompileError(what, hint="exact gives the gradients of that feedback")
    return clocked(levelled(pc), settings.dynamics == "full")


def clocked(pc: PCGraph, full: bool) -> Program:
    """The dynamics on `pc` as it is; right only where its edges join neighbouring levels."""
    level = pc.levels()
    infer: list[Step] = [*each(pc.latent, "value = prediction"), *each(pc.latent, "error = zero")]
    started: set[str] = set()
    for t in range(max(level.values()) + 1):
        active = [v for v in pc.vertices if (level[v.name] <= t if full else level[v.name] == t)]
        infer += _look(pc, active, full)
        infer += _learn(pc, [v for v in pc.vertices if level[v.name] == t], started)
        moving = [v for v in pc.latent if (level[v.name] <= t + 1 if full else level[v.name] == t + 1)]
        infer += each(moving, f"force = {FORCE}", at="value")
        infer += each(moving, "value = value + force")
    facts = (f"{max(level.values())} steps of size 1; each vertex learns at the step of its level",)
    return Program(pc, "zil", tuple(infer), (), state="value" if full else "", facts=facts)


def _look(pc: PCGraph, active: Sequence[Vertex], full: bool) -> tuple[Do, ...]:
    """Predictions and errors; where nothing in front of a vertex has moved, its prediction stands."""
    clamped = set(pc.clamped)
    return (
        *(each(active, "prediction = predict", at="value") if full else ()),
        *each([v for v in active if v.name in clamped], "error = clamp"),
        *each([v for v in active if v.name not in clamped], "error = value - prediction"),
    )


def _learn(pc: PCGraph, ready: Sequence[Vertex], started: set[str]) -> list[Do]:
    """The share that the vertices which are ready have in the gradient of each parameter."""
    found: list[Do] = []
    for name in learners(pc):
        senders = {v.name: {"error": 1.0} for v in ready if name in v.messages}
        if senders:
            equation = "gradient - pull" if name in started else "-pull"
            found.append(Do(name, "gradient", equation, "value", senders))
            started.add(name)
    return found


ALGORITHM = Algorithm(
    "zil", schedule, Settings, "arXiv:2103.04689", equals="backprop", needs_loss=False, descends=False
)


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
