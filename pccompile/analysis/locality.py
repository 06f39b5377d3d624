"""Whether an algorithm is local, read off its program: how far news travels in a turn, and what each update reads.

A Do reads its own slots, its children's and its parents'. What a neighbour was assigned earlier in the same turn of a
loop is news of that turn, so it has come one hop farther than the neighbour's own. A local algorithm takes the same
number of hops on a graph of any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pccompile.ir import Do, PCGraph, Program, Repeat, Vertex, flat, steps_of
from pccompile.ir.equations import names, parse
from pccompile.ir.liveness import Place, reads

FEW = 3
"""So many hops a turn takes where each vertex looks at its parents, at its children, and at its parents again."""


@dataclass(frozen=True)
class Hops:
    """How far news comes in one turn, and the chain of updates by which it comes so far, the first one first.

    turn: "a step" of a loop, or "inference" where there is none.
    """

    turn: str
    hops: int
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Locality:
    """What a program needs of a substrate.

    turns: each loop of inference, and what stands outside of loops, with its hops. neighbours: every update reads its
    own vertex, its children and their parents alone, which the language guarantees. kept: slots that outlive a step,
    `prediction` where those of the forward pass are stored. transported: parameters that messages read though they
    learn: their weights are needed at both ends. learns: when parameters learn.
    """

    turns: tuple[Hops, ...]
    longest: int
    kept: tuple[str, ...]
    transported: tuple[str, ...]
    learns: str

    @property
    def local(self) -> bool:
        """Whether a turn is as long on a graph of any depth: it predicts, pulls, and predicts again at most."""
        return all(t.hops <= FEW for t in self.turns)


def locality(program: Program) -> Locality:
    """What `program` needs of a substrate."""
    turns = [Hops("a step", *farthest(program, s.body)) for s in program.infer if isinstance(s, Repeat)]
    if not turns:
        turns = [Hops("inference", *farthest(program, program.infer))]
    pc = program.pc
    return Locality(
        tuple(turns),
        max(pc.levels().values(), default=0),
        tuple(_kept(program)),
        tuple(sorted(_transported(pc))),
        "inside inference, at every step" if program.updates else _learns(program),
    )


def farthest(program: Program, steps: Sequence[object]) -> tuple[int, tuple[str, ...]]:
    """The most hops of an update in one turn over `steps`, and the updates that lead there."""
    pc, made = program.pc, set[Place]()
    children, vertices = pc.children(), {v.name: v for v in pc.vertices}
    every = {(d.vertex, d.slot) for d in flat(program.infer)}
    hops: dict[Place, int] = {}
    before: dict[Place, Place] = {}
    text: dict[Place, str] = {}
    for s in steps:
        if not isinstance(s, Do) or s.vertex not in vertices:
            continue
        place, found, last = (s.vertex, s.slot), 0, None
        for p in reads(program, s, children, vertices, every):
            if p in made and p != place:
                come = hops[p] + (p[0] != s.vertex)
                if come > found:
                    found, last = come, p
        neighbours = any(n in ("pull", "predict") for n in names(parse(s.equation)))
        found = max(found, int(neighbours))
        hops[place], text[place] = found, str(s)
        if last is not None and last != place:
            before[place] = last
        else:
            before.pop(place, None)
        made.add(place)
    if not hops:
        return 0, ()
    at: Place | None = max(hops, key=hops.__getitem__)
    most, chain = hops[max(hops, key=hops.__getitem__)], list[str]()
    while at is not None and text[at] not in chain:
        chain.append(text[at])
        at = before.get(at)
    return most, tuple(reversed(chain))


def _kept(program: Program) -> Iterator[str]:
    """The slots that an update reads before the same turn assigns them, the forward pass's predictions among them."""
    children, vertices = program.pc.children(), {v.name: v for v in program.pc.vertices}
    every = {(d.vertex, d.slot) for d in flat(program.infer)}
    found: dict[str, None] = {}
    loops = [s.body for s in steps_of(program.infer) if isinstance(s, Repeat)] or [program.infer]
    for body in loops:
        made = set[Place]()
        for d in (d for d in body if isinstance(d, Do)):
            for owner, slot in reads(program, d, children, vertices, every):
                known = (owner, slot) in every or (slot == "prediction" and owner in vertices)
                if known and (owner, slot) not in made:
                    found[slot] = None
            made.add((d.vertex, d.slot))
    yield from sorted(found)


def _transported(pc: PCGraph) -> Iterator[str]:
    """The parameters that learn and that a message to another vertex reads."""
    learn = pc.graph.wanted & set(pc.graph.params)
    latent = {v.name for v in pc.latent}
    for v in pc.vertices:
        for parent in v.messages:
            if parent in latent:
                yield from (pc.graph.origin[p] for p in _read(v, parent) & learn)


def _read(v: Vertex, parent: str) -> set[str]:
    """What a message is multiplied by; what only its prediction reads, such as a bias, is not sent anywhere."""
    rules = {n.name for n in v.rules}
    return {str(r) for n in v.message(parent) if n.name in rules for r in n.inputs}


def _learns(program: Program) -> str:
    inside = [d for d in flat(program.infer) if d.slot == "gradient"]
    if not inside:
        return "after inference"
    return "at several moments of inference" if not program.learn else "in each phase of inference"


def carried(program: Program) -> Mapping[str, int]:
    """Evaluations of a whole inference: predictions, messages to vertices, messages to parameters."""
    found = {"predictions": 0, "messages": 0, "gradients": 0}
    children, vertices = program.pc.children(), set(program.pc.names)

    def add(steps: Sequence[object], times: int) -> None:
        for s in steps:
            if isinstance(s, Repeat):
                turns = program.arguments[s.times]
                add(s.body, times * (turns if isinstance(turns, int) else 1))
            elif isinstance(s, Do):
                read = set(names(parse(s.equation)))
                found["predictions"] += times * ("predict" in read)
                if "pull" in read:
                    kind = "messages" if s.vertex in vertices else "gradients"
                    found[kind] += times * len(children[s.vertex])

    found["predictions"] = len(program.pc.vertices)
    add(program.infer, 1)
    add(program.learn, 1)
    return found


__all__ = ["Hops", "Locality", "carried", "farthest", "locality"]
