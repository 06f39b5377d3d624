"""A program divided between processes: each runs the equations of its own vertices, and exchanges slots at the cuts.

A value that a vertex of another process reads is told to it; an error comes back as the message Jᵀ ε, which the process
of the child computes, since it has the weights. An exchange stands in front of the first equation that reads something
not yet heard, and brings whatever later equations will read that does not change before they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pccompile.diagnostics import CompileError
from pccompile.ir import Do, Exchange, ForEach, Program, Repeat, Step, flat
from pccompile.ir.equations import added_up, names, parse, substituted
from pccompile.passes.divide_graph import Part

Place = tuple[str, str]
Carried = tuple[tuple[str, tuple[str, ...]], ...]
"""Children, each with the slots that its message carries."""


@dataclass(frozen=True)
class Need:
    """What an equation on rank `to` reads of rank `of`: slot `slot` of the vertex `owner`.

    message: where it is a sum of messages, the equation that computes it there. reads: the slots that it is made of.
    """

    of: int
    to: int
    owner: str
    slot: str
    reads: frozenset[Place]
    message: Do | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Transfer:
    """One slot on its way, in exchange `number`. paced: it is in a loop that takes turns."""

    number: int
    of: int
    to: int
    owner: str
    paced: bool


@dataclass(frozen=True)
class Division:
    """The program of each rank, and what goes between them, in the order in which each rank tells and hears it."""

    programs: tuple[Program, ...]
    transfers: tuple[Transfer, ...]


def divide_program(program: Program, parts: Sequence[Part], owners: Mapping[str, int]) -> Division:
    """`program` in as many programs as there are `parts`, which together do what it does.

    Raises CompileError for what processes cannot do each for itself: sums over all vertices, loops that stop when all
    have settled, parameters that move within inference.
    """
    return _Division(program, parts, owners).run()


@dataclass
class _Division:
    program: Program
    parts: Sequence[Part]
    owners: Mapping[str, int]
    transfers: list[Transfer] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.pc = self.program.pc
        self.children, self.vertices = self.pc.children(), {v.name: v for v in self.pc.vertices}
        self.rank_of = dict(self.owners)
        for name in self.pc.reached:
            self.rank_of[name] = next(r for r, part in enumerate(self.parts) if name in part.pc.graph.params)
        self.assigned = {(d.vertex, d.slot) for d in flat(self.program.infer)}
        self.slots: dict[object, str] = {}
        self.heard: set[Need] = set()

    def run(self) -> Division:
        """The programs."""
        infer = self.block(self.program.infer, paced=False)
        count = self.count
        learn = self.block(self.program.learn, paced=False)
        if self.count > count:
            raise self.refuse("learning reads what inference has not exchanged")
        return Division(
            tuple(self.of_rank(r, infer[r], learn[r]) for r in range(len(self.parts))), tuple(self.transfers)
        )

    def of_rank(self, rank: int, infer: list[Step], learn: list[Step]) -> Program:
        pc = self.parts[rank].pc
        own = {v.name for v in pc.vertices}
        arguments = {
            k: v if isinstance(v, int | float) else {name: x for name, x in v.items() if name in own}
            for k, v in self.program.arguments.items()
        }
        facts = (*self.program.facts, f"Rank {rank} of {len(self.parts)}: `neighbours` are the others")
        return replace(
            self.program, pc=pc, infer=tuple(infer), learn=tuple(learn), sweep=(), arguments=arguments, facts=facts
        )

    def refuse(self, why: str) -> CompileError:
        return CompileError(f"{self.program.algorithm} cannot be divided between processes: {why}")

    def block(self, steps: Sequence[Step], paced: bool) -> list[list[Step]]:
        """The steps of each rank."""
        found: list[list[Step]] = [[] for _ in self.parts]
        for i, s in enumerate(steps):
            match s:
                case Do():
                    self.hear(steps[i:], found, paced)
                    self.do(s, found)
                    self.written({(s.vertex, s.slot)})
                case Repeat() | ForEach():
                    self.loop(s, found, paced)
                case _:
                    raise self.refuse("parameters move within inference")
        return found

    def loop(self, loop: Repeat | ForEach, found: list[list[Step]], paced: bool) -> None:
        """A loop: what its turns assign is news at the start of each and behind it."""
        if isinstance(loop, Repeat) and loop.until:
            raise self.refuse("inference stops when all vertices have settled: leave the tolerance out")
        assigned = {(d.vertex, d.slot) for d in flat(loop.body)}
        self.written(assigned)
        bodies = self.block(loop.body, paced or isinstance(loop, Repeat))
        self.written(assigned)
        for rank, body in enumerate(bodies):
            if body:
                same = replace(loop, body=tuple(body))
                found[rank].append(replace(same, unmoved={}) if isinstance(same, Repeat) else same)

    def written(self, places: set[Place]) -> None:
        """From here on what has been heard of these places is old."""
        self.heard = {n for n in self.heard if places.isdisjoint(n.reads)}

    def do(self, d: Do, found: list[list[Step]]) -> None:
        """An equation, on the rank that owns its vertex; what children elsewhere send has been heard."""
        if d.vertex not in self.rank_of:
            raise self.refuse(f"it assigns {d.slot} of {d.vertex}, which no process owns")
        tree, rank = parse(d.equation), self.rank_of[d.vertex]
        if [*added_up(tree)]:
            raise self.refuse("an equation adds up a slot of all vertices")
        messages = [n for n in self.needs(d) if n.message is not None and n.owner == d.vertex]
        if messages and "pull" in names(tree):
            here = [self.rank_of[c] == rank for c, _ in self.senders(d)]
            pull = " + ".join([*(["pull"] if any(here) else []), *(n.slot for n in messages)])
            d = replace(d, equation=substituted(d.equation, {"pull": pull}))
        found[rank].append(replace(d, carries=_kept(d.carries, {v.name for v in self.parts[rank].pc.vertices})))

    # what is read of other ranks

    def senders(self, d: Do) -> Carried:
        """The children whose messages an equation adds up, with the slots that these carry."""
        pairs = (
            (c.name, (d.carries,) if isinstance(d.carries, str) else tuple(d.carries.get(c.name, ())))
            for c in self.children[d.vertex]
        )
        return tuple((name, slots) for name, slots in pairs if slots)

    def needs(self, d: Do) -> Iterator[Need]:
        """What an equation reads of other ranks, and what these read to compute it, that first."""
        rank, read = self.rank_of[d.vertex], set(names(parse(d.equation)))
        if "predict" in read:
            yield from self.values(rank, d.vertex, d.at)
        if "pull" not in read:
            return
        by_rank: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
        for c, slots in self.senders(d):
            by_rank.setdefault(self.rank_of[c], []).append((c, slots))
        for other, sent in by_rank.items():
            for c, _ in sent:
                yield from self.values(other, c, d.at)
            if other == rank:
                continue
            reads = {(c, slot) for c, slots in sent for slot in slots}
            reads |= {
                (p, self.slot_at(p, d.at)) for c, _ in sent for p in self.vertices[c].parents if p in self.vertices
            }
            key = d.vertex, other, d.at, tuple(sent) if isinstance(d.carries, str) else repr(d.carries)
            same = sum(k[:2] == key[:2] for k in self.slots)  # type: ignore[index]
            slot = self.slots.setdefault(key, f"from_rank_{other}" + (f"_{same}" if same else ""))
            message = Do(d.vertex, slot, "pull", d.at, _kept(d.carries, {c for c, _ in sent}))
            yield Need(other, rank, d.vertex, slot, frozenset(reads), message)

    def values(self, rank: int, vertex: str, at: str) -> Iterator[Need]:
        """The values of other ranks' vertices that the rules of a vertex read."""
        for p in self.vertices[vertex].parents:
            if p in self.vertices and self.rank_of[p] != rank:
                slot = self.slot_at(p, at)
                if (p, slot) in self.assigned:  # else what was predicted, which is told before inference
                    yield Need(self.rank_of[p], rank, p, slot, frozenset({(p, slot)}))

    def slot_at(self, vertex: str, at: str) -> str:
        return at if (vertex, at) in self.assigned else "prediction"

    # exchanges

    def hear(self, steps: Sequence[Step], found: list[list[Step]], paced: bool) -> None:
        """Exchanges in front of the first of `steps`, until nothing is missing that it reads."""
        assert isinstance(steps[0], Do)
        while missing := [n for n in self.needs(steps[0]) if n not in self.heard]:
            known = set(self.heard)
            brought = list(dict.fromkeys(n for n in self.ahead(steps) if n not in known and self.ready(n, known)))
            assert any(n in brought for n in missing), steps[0]
            self.exchange(brought, found, paced)

    def ready(self, need: Need, known: Iterable[Need]) -> bool:
        """Whether the rank that is to tell it has heard all that it is made of."""
        if need.message is None:
            return True
        children = [c for c, _ in self.senders(need.message) if self.rank_of[c] == need.of]
        return all(n in known for c in children for n in self.values(need.of, c, need.message.at))

    def ahead(self, steps: Sequence[Step]) -> Iterator[Need]:
        """What the coming steps of a block read, as far as it is as it will be then."""
        written = set[Place]()
        for s in steps:
            if not isinstance(s, Do):
                return
            yield from (n for n in self.needs(s) if written.isdisjoint(n.reads))
            written.add((s.vertex, s.slot))

    def exchange(self, brought: list[Need], found: list[list[Step]], paced: bool) -> None:
        number, self.count = self.count, self.count + 1
        brought = sorted(brought, key=lambda n: (n.of, n.to))
        for need in brought:
            if need.message is not None:
                found[need.of].append(need.message)
            self.transfers.append(Transfer(number, need.of, need.to, need.owner, paced))
        for rank, steps in enumerate(found):
            told = tuple((n.owner, n.slot) for n in brought if n.of == rank)
            heard = tuple((n.owner, n.slot) for n in brought if n.to == rank)
            if told or heard:
                steps.append(Exchange(number, told, heard))
                steps += (Do(owner, slot, "heard") for owner, slot in heard)
        self.heard |= set(brought)


def _kept(
    carries: str | Mapping[str, Mapping[str, float]], children: set[str]
) -> str | Mapping[str, Mapping[str, float]]:
    """What these children's messages carry."""
    return carries if isinstance(carries, str) else {c: slots for c, slots in carries.items() if c in children}
