"""Whether an algorithm is local, read off its program: how far news travels in a turn, and what each update reads.

A Do reads its own slots, its children's and its parents'. What a neighbour was assigned earlier in the same turn of a
loop is news of that turn, so it has come one hop farther than the neighbour's own. An assignment that needs the same
assignment of another vertex is one of a sweep, which is as long as the graph is deep; a turn without sweeps takes the
same number of hops on a graph of any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pccompile.analysis.factors import factors
from pccompile.ir import Do, ForEach, PCGraph, Program, Repeat, flat, steps_of
from pccompile.ir.equations import added_up, names, parse
from pccompile.ir.liveness import Place, reads

WAVE = "inference"
"""What is a turn where there is no loop."""


@dataclass(frozen=True)
class Hops:
    """How far news comes in one turn, and the chain of updates by which it comes so far, the first one first.

    turn: "a step" of a loop, or "inference" where there is none. sweeps: whether vertices wait for one another, or
    for a sum over all of them.
    """

    turn: str
    hops: int
    chain: tuple[str, ...]
    sweeps: bool


@dataclass(frozen=True)
class Locality:
    """What a program needs of a substrate.

    turns: each loop of inference, and what stands outside of loops, with its hops. neighbours: every update reads its
    own vertex, its children and their parents alone, which the language guarantees. kept: slots that outlive a step,
    `prediction` where those of the forward pass are stored. across: slots that outlive a whole relaxation, because
    what comes after it reads what was assigned before it. transported: parameters that messages read though they
    learn: their weights are needed at both ends. learns: when parameters learn. lasting: slots that are kept between
    calls. broadcast: vertices that send errors straight to others far away, with the number of these.
    """

    turns: tuple[Hops, ...]
    longest: int
    kept: tuple[str, ...]
    across: tuple[str, ...]
    transported: tuple[str, ...]
    learns: str
    lasting: tuple[str, ...] = ()
    broadcast: tuple[tuple[str, int], ...] = ()

    @property
    def wave(self) -> bool:
        """Whether inference takes no steps: news crosses the graph once, each vertex waiting for its neighbours."""
        return all(t.turn == WAVE for t in self.turns)

    @property
    def local(self) -> bool:
        """Whether a step is as long on a graph of any depth. A single wave has no steps, and is local too."""
        return self.wave or not any(t.sweeps for t in self.turns)


def locality(program: Program) -> Locality:
    """What `program` needs of a substrate."""
    turns = [Hops("a step", *farthest(program, s.body)) for s in program.infer if isinstance(s, Repeat | ForEach)]
    if not turns:
        turns = [Hops(WAVE, *farthest(program, program.infer))]
    pc = program.pc
    return Locality(
        tuple(turns),
        max(pc.levels().values(), default=0),
        tuple(_kept(program)),
        tuple(_across(program)),
        tuple(sorted({*_transported(pc)})),
        "inside inference, at every step" if program.updates else _learns(program),
        tuple(sorted({slot for _, slot in program.kept})),
        tuple(_broadcast(pc)),
    )


def farthest(program: Program, steps: Sequence[object]) -> tuple[int, tuple[str, ...], bool]:
    """The most hops of an update in one turn over `steps`, the updates that lead there, and whether it sweeps."""
    children, vertices = program.pc.children(), {v.name: v for v in program.pc.vertices}
    every = {(d.vertex, d.slot) for d in flat(program.infer)}
    hops, text, before = dict[Place, int](), dict[Place, str](), dict[Place, Place]()
    times, needs = dict[Place, int](), dict[Place, frozenset[tuple[str, int]]]()
    sweeps, numbers = False, program.numbers
    for s in steps:
        if not isinstance(s, Do) or s.vertex not in vertices:
            continue
        place = (s.vertex, s.slot)
        news = [p for p in reads(s, numbers, children, vertices, every) if p in hops and p != place]
        come = {p: hops[p] + (p[0] != s.vertex) for p in news}
        last = max(news, key=come.__getitem__, default=None)
        neighbours = any(n in ("pull", "predict") for n in names(parse(s.equation)))
        number = times[place] = times.get(place, 0) + 1
        above = frozenset[tuple[str, int]]().union(*(needs[p] for p in news))
        sweeps |= (s.slot, number) in above or any(added_up(parse(s.equation)))
        needs[place] = above | {(s.slot, number)}
        hops[place], text[place] = max([int(neighbours), *come.values()]), str(s)
        if last is not None and come[last]:
            before[place] = last
        else:
            before.pop(place, None)
    if not hops:
        return 0, (), False
    at: Place | None = max(hops, key=hops.__getitem__)
    most, chain = max(hops.values()), list[str]()
    while at is not None and text[at] not in chain:
        chain.append(text[at])
        at = before.get(at)
    return most, tuple(reversed(chain)), sweeps


def _kept(program: Program) -> Iterator[str]:
    """The slots that an update reads before the same turn assigns them, the forward pass's predictions among them."""
    children, vertices = program.pc.children(), {v.name: v for v in program.pc.vertices}
    every = {(d.vertex, d.slot) for d in flat(program.infer)}
    slots, numbers = dict[str, None](), program.numbers
    loops = [s.body for s in steps_of(program.infer) if isinstance(s, Repeat | ForEach)] or [program.infer]
    for body in loops:
        assigned = set[Place]()
        for d in (d for d in body if isinstance(d, Do)):
            for owner, slot in reads(d, numbers, children, vertices, every):
                known = (owner, slot) in every or (slot == "prediction" and owner in vertices)
                if known and (owner, slot) not in assigned:
                    slots[slot] = None
            assigned.add((d.vertex, d.slot))
    yield from sorted(slots)


def _across(program: Program) -> Iterator[str]:
    """The slots that are assigned before a loop, not in it, and read behind it."""
    children, vertices = program.pc.children(), {v.name: v for v in program.pc.vertices}
    loops, assigned, slots, numbers = 0, dict[Place, int](), set[str](), program.numbers
    for s in (*program.infer, *program.learn):
        loops += isinstance(s, Repeat | ForEach)
        for d in flat([s]):
            if not isinstance(s, Repeat | ForEach):
                places = reads(d, numbers, children, vertices, assigned.keys())
                slots |= {slot for owner, slot in places if assigned.get((owner, slot), loops) < loops}
            assigned[d.vertex, d.slot] = loops
    yield from sorted(slots)


def _transported(pc: PCGraph) -> Iterator[str]:
    """The parameters that learn and that a message to another vertex reads, but for feedback weights: they are its."""
    learn = pc.graph.wanted & set(pc.graph.params) - {leaf for leaf, f in pc.feedback.items() if not f.mirror}
    latent = {v.name for v in pc.latent}
    for v in pc.vertices:
        for parent in v.messages:
            if parent in latent:
                yield from (pc.graph.origin[p] for p in factors(v, parent) & learn)


def _broadcast(pc: PCGraph) -> Iterator[tuple[str, int]]:
    """The vertices with weights that lead straight to others, and how many others."""
    direct = {leaf for leaf, f in pc.feedback.items() if f.direct}
    for v in pc.vertices:
        if count := len(direct & set(v.parents)):
            yield str(v.name), count


def _learns(program: Program) -> str:
    inside = [d for d in flat(program.infer) if d.slot == "gradient"]
    if not inside:
        return "after inference"
    return "at several moments of inference" if not program.learn else "in each phase of inference"


def carried(program: Program) -> Mapping[str, int]:
    """Evaluations of a whole inference: predictions, messages to vertices, messages to parameters."""
    evaluations = {"predictions": 0, "messages": 0, "gradients": 0}
    children, vertices = program.pc.children(), set(program.pc.names)

    def add(steps: Sequence[object], times: int) -> None:
        for s in steps:
            if isinstance(s, Repeat):
                turns = program.arguments[s.times]
                add(s.body, times * (turns if isinstance(turns, int) else 1))
            elif isinstance(s, ForEach):
                add(s.body, times * len(s.rows))
            elif isinstance(s, Do):
                read = set(names(parse(s.equation)))
                evaluations["predictions"] += times * ("predict" in read)
                if "pull" in read:
                    kind = "messages" if s.vertex in vertices else "gradients"
                    sends = [isinstance(s.carries, str) or bool(s.carries.get(c.name)) for c in children[s.vertex]]
                    evaluations[kind] += times * sum(sends)

    evaluations["predictions"] = len(program.pc.vertices)
    add(program.infer, 1)
    add(program.learn, 1)
    return evaluations
