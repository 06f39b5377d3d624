"""A graph divided between processes, each of which owns vertices with their parameters.

What a process reads of another's vertex is a *ghost*: a vertex of the same name whose prediction is what it was told.
What carries no gradient but depends on values, on parameters or on chance is computed by one process, which tells it to
those that read it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pccompile.diagnostics import CompileError
from pccompile.ir import Graph, Node, PCGraph, Ref, TensorType, Vertex
from pccompile.ir.names import Namer
from pccompile.ops import OPS, bind

ANYWHERE = -1
"""The rank of what every process can compute for itself."""
SAME = "aten.expand.default"


@dataclass(frozen=True)
class Part:
    """What one rank has. hears: by the leaf that takes it, the rank and the value that it is told before it predicts.

    tells: for each higher rank, the values that it is told after prediction, in the order in which it hears them.
    """

    pc: PCGraph
    hears: Mapping[str, tuple[int, str]]
    tells: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def divide_graph(pc: PCGraph, owners: Mapping[str, int], ranks: int) -> tuple[Part, ...]:
    """`pc` in so many parts; `owners` gives each vertex's rank.

    Raises CompileError where a prediction would have to go back to a lower rank, where a parameter has two owners,
    where outputs with a loss have several, and for what no part could hold.
    """
    return _Division(pc, owners, ranks).parts()


class _Division:
    def __init__(self, pc: PCGraph, owners: Mapping[str, int], ranks: int) -> None:
        self.pc, self.graph, self.owners, self.ranks = pc, pc.graph, owners, ranks
        self.nodes = {n.name: n for n in self.graph.nodes}
        self.vertex_of = {str(v.result): v.name for v in pc.vertices if v.prediction}
        self.leaves, self.vertices = self.graph.leaves, {v.name: v for v in pc.vertices}
        self.refuse_what_has_no_part()
        self.readers = self._readers()
        self.loss_rank = self._loss_rank()
        self.homes: dict[str, int] = {}
        for n in pc.context:
            self.homes[n.name] = self._home(n)
        self.refuse_ways_back()

    # who owns what

    def _readers(self) -> dict[str, set[int]]:
        """The ranks whose vertices read each leaf and each value of the context, through other context too."""
        found: dict[str, set[int]] = {}
        for v in self.pc.vertices:
            for p in v.parents:
                found.setdefault(p, set()).add(self.owners[v.name])
        for n in reversed(self.pc.context):
            for i in n.inputs:
                found.setdefault(i, set()).update(found.get(n.name, ()))
        learned = self.graph.params.keys() & self.graph.wanted
        for name in (*self.graph.params, *self.graph.buffers):
            if len(found.get(name, ())) > 1 and (name in learned or name in self.graph.updates):
                ranks = " and ".join(map(str, sorted(found[name])))
                what = f"{self.graph.origin.get(name, name)} is read by vertices of ranks {ranks}"
                raise CompileError(what, hint="a parameter has one owner: give what shares it to one rank")
        return found

    def _loss_rank(self) -> int:
        found = {self.owners[o.vertex]: o.value for o in self.pc.outputs}
        if len(found) > 1:
            ranks = " and ".join(f"{value} (rank {rank})" for rank, value in sorted(found.items()))
            what = f"the loss reads outputs of several ranks: {ranks}"
            raise CompileError(what, hint="give the modules that make outputs to one rank")
        return next(iter(found))

    @functools.cache  # noqa: B019 (a division lives for one call)
    def rank(self, value: str) -> int:
        """The lowest rank that can compute a value of the graph; ANYWHERE where all can."""
        if value in self.owners:
            return self.owners[value]
        if value in self.homes:
            return self.homes[value]
        if value in self.leaves:
            learned = value in self.graph.wanted or value in self.graph.updates
            return min(self.readers.get(value) or {ANYWHERE}) if learned else ANYWHERE
        return max(map(self.rank, self.nodes[value].inputs), default=ANYWHERE)

    def _home(self, n: Node) -> int:
        """The rank that computes a value of the context: for a random draw the lowest that reads it."""
        home = max(map(self.rank, n.inputs), default=ANYWHERE)
        if n.op in OPS and OPS[n.op].random:
            home = max(home, min(self.readers.get(n.name) or {self.loss_rank}))
        return home

    def _updater(self, buffer: str) -> int:
        """The rank that moves a buffer on: the one that computes its new value, or has the module it belongs to."""
        if (rank := self.rank(self.graph.updates[buffer])) != ANYWHERE:
            return rank
        of_buffer = self.graph.origin.get(buffer, buffer).rpartition(".")[0]
        for name, readers in self.readers.items():
            if self.graph.origin.get(name, "").rpartition(".")[0] == of_buffer and readers:
                return min(readers)
        return min(self.owners.values())

    # what is refused

    def refuse_what_has_no_part(self) -> None:
        graph = self.graph
        moved = self.pc.feedback or self.pc.lasting or self.pc.roles or self.pc.observed
        late = [name for name, source in graph.dims.items() if source.tensor not in graph.inputs]
        drawn: dict[str, int] = {}
        problems = [
            (bool(moved), "feedback weights, roles and energies that learn are of one process"),
            (bool(graph.states), f"forward changes {', '.join(graph.states)}, which is no buffer in place"),
            (bool(graph.further), "forward writes a value that carries a gradient into a buffer or an argument"),
            (bool(self.pc.decided), "which branch was taken decides which parameters have a gradient"),
            (bool(late), "a length is known only once the model has run"),
            (bool(graph.wanted & graph.inputs.keys()), "an input requires a gradient"),
        ]
        for v in self.pc.vertices:
            for n in v.prediction:
                if (
                    n.op in OPS
                    and OPS[n.op].random
                    and drawn.setdefault(n.name, self.owners[v.name]) != self.owners[v.name]
                ):
                    problems.append((True, f"vertices of two ranks read the draw {n.name}"))
        for wrong, what in problems:
            if wrong:
                raise CompileError(f"a model cannot be divided between processes where {what}")

    def refuse_ways_back(self) -> None:
        """Raise CompileError where a vertex reads, to predict, what a higher rank computes."""
        for v in self.pc.vertices:
            for p in v.parents:
                if self.rank(p) > self.owners[v.name]:
                    what = f"{v.name} is on rank {self.owners[v.name]} and reads {p} of rank {self.rank(p)}"
                    raise CompileError(what, v.where, "number the ranks in the order in which the model predicts")

    # parts

    def parts(self) -> tuple[Part, ...]:
        """The part of each rank."""
        needs = [dict[str, int]() for _ in range(self.ranks)]
        for rank in reversed(range(self.ranks)):
            asked = [v for higher in needs[rank + 1 :] for v, of in higher.items() if of == rank]
            needs[rank] = dict(self.needs(rank, asked))
        return tuple(self.part(rank, needs) for rank in range(self.ranks))

    def needs(self, rank: int, asked: list[str]) -> Iterator[tuple[str, int]]:
        """All values that a rank computes or reads, each with the rank that computes it (its own, or ANYWHERE).

        asked: what higher ranks read of it. Raises CompileError where it would need another rank's parameter.
        """
        roots = asked + [str(v.result) for v in (*self.owned(rank), *self.relays(rank))]
        roots += [value for buffer, value in self.graph.updates.items() if self._updater(buffer) == rank]
        roots += self.graph.outputs if rank == self.loss_rank else ()
        seen = set[str]()
        while roots:
            value = roots.pop()
            if value in seen:
                continue
            seen.add(value)
            told = value in self.vertex_of or value in self.homes
            whose = self.rank(value) if told else rank
            if value in self.leaves and self.rank(value) not in (rank, ANYWHERE):
                path = self.graph.origin.get(value, value)
                raise CompileError(f"{path} belongs to rank {self.rank(value)}, and rank {rank} computes with it")
            yield value, whose
            if whose in (rank, ANYWHERE) and value in self.nodes:
                roots += self.nodes[value].inputs

    def part(self, rank: int, needs: list[dict[str, int]]) -> Part:
        """What a rank has; `needs` are those of all ranks."""
        graph, own = self.graph, needs[rank]
        namer = Namer((*self.leaves, *self.nodes, *graph.dims, *self.pc.names))
        hears: dict[str, tuple[int, str]] = {}
        ghosts: dict[str, Vertex] = {}
        for value in [n.name for n in graph.nodes if own.get(n.name, rank) not in (rank, ANYWHERE)]:
            leaf = namer(f"{value}_heard") if value in self.vertex_of else value
            hears[leaf] = own[value], value
            if value in self.vertex_of:
                ghosts[value] = self.ghost(value, leaf)
        tells = {
            r: tuple(v for v in self.in_order(needs[r]) if needs[r][v] == rank) for r in range(rank + 1, self.ranks)
        }
        tells = {r: values for r, values in tells.items() if values}
        results = graph.outputs if rank == self.loss_rank else ()
        further = tuple(dict.fromkeys(v for values in tells.values() for v in values if v not in results))
        names = {value for value in own if value not in ghosts and value not in hears}
        origin = {k: path for k, path in graph.origin.items() if k in names}
        nodes = tuple(n for g in ghosts.values() for n in g.prediction)
        types = graph.types
        local = replace(
            graph,
            inputs={**graph.inputs, **{leaf: _tensor(types[value]) for leaf, (_, value) in hears.items()}},
            params={k: t for k, t in graph.params.items() if k in names},
            buffers={k: t for k, t in graph.buffers.items() if k in names},
            nodes=(*nodes, *(n for n in graph.nodes if n.name in names)),
            outputs=(*results, *further),
            origin=origin,
            updates={b: v for b, v in graph.updates.items() if self._updater(b) == rank},
            wanted=graph.wanted & names,
            further=len(further),
        )
        relays = {v.name: replace(v, rules=(), messages={}) for v in self.relays(rank)}
        here = {v.name: v for v in self.owned(rank)} | relays | ghosts
        pc = replace(
            self.pc,
            graph=self.with_buffers(local),
            vertices=tuple(here[v.name] for v in self.pc.vertices if v.name in here),
            context=tuple(n for n in self.pc.context if n.name in names),
            outputs=self.pc.outputs if rank == self.loss_rank else (),
            reached=self.pc.reached & names,
        )
        return Part(pc, hears, tells)

    def owned(self, rank: int) -> tuple[Vertex, ...]:
        return tuple(v for v in self.pc.vertices if self.owners[v.name] == rank)

    def relays(self, rank: int) -> tuple[Vertex, ...]:
        """Vertices of other ranks that predict what their parent is, which those of this rank read."""
        waiting, found = list(self.owned(rank)), dict[str, Vertex]()
        while waiting:
            for p in waiting.pop().parents:
                v = self.vertices.get(p)
                if v is not None and not v.prediction and self.owners[p] != rank and p not in found:
                    found[p] = v
                    waiting.append(v)
        return tuple(found.values())

    def in_order(self, needs: Mapping[str, int]) -> Iterator[str]:
        return (n.name for n in self.graph.nodes if n.name in needs)

    def ghost(self, value: str, leaf: str) -> Vertex:
        """A vertex whose prediction is what was told of it."""
        type_ = _tensor(self.graph.types[value])
        node = Node(value, SAME, bind(SAME, (Ref(leaf), (-1,) * len(type_.shape)), {}), type_, self.nodes[value].where)
        return Vertex(self.vertex_of[value], (leaf,), (node,), Ref(value), type_, where=node.where)

    def with_buffers(self, graph: Graph) -> Graph:
        """`graph` with the buffers that it writes and does not read."""
        more = {b: self.graph.buffers[b] for b in graph.updates if b not in graph.buffers}
        origin = {**graph.origin, **{b: self.graph.origin[b] for b in more if b in self.graph.origin}}
        return replace(graph, buffers={**graph.buffers, **more}, origin=origin)


def _tensor(type_: object) -> TensorType:
    if not isinstance(type_, TensorType):
        raise CompileError("an operation with several results would be divided between two ranks")
    return type_
