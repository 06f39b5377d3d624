"""What learning reads of inference: the slots that one phase of a program hands to the next."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from pccompile.ir.equations import TERMS, added_up, names, parse
from pccompile.ir.pc import Vertex
from pccompile.ir.program import Do, Program, flat

Place = tuple[str, str]
"""A slot of an owner: (owner, slot)."""


def reads(
    d: Do,
    numbers: Container[str],
    children: Mapping[str, Sequence[Vertex]],
    vertices: Mapping[str, Vertex],
    made: AbstractSet[Place],
) -> Iterator[Place]:
    """The slots that a Do reads of its own, its children's and their parents'; `made` are those assigned so far.

    numbers: the names in its equation that are no slots, see `Program.numbers`. A parent without slot `at` is read
    where it is predicted.
    """

    def parent(name: str) -> Place:
        return name, d.at if (name, d.at) in made else "prediction"

    own = set(names(parse(d.equation)))
    for slot in added_up(parse(d.equation)):
        yield from ((v, slot) for v in vertices if (v, slot) in made)
    yield from ((d.vertex, n) for n in own if n not in numbers)
    if own & {"send", "hold"} and d.vertex in vertices:
        yield from ((d.vertex, s) for s in sorted(_of_energy(vertices[d.vertex], own)))
    if "clamp" in own:
        yield d.vertex, "prediction"
    if "predict" in own and d.vertex in vertices:
        yield from (parent(p) for p in vertices[d.vertex].parents if p in vertices)
    if "pull" in own:
        for c in children.get(d.vertex, ()):
            slots = (d.carries,) if isinstance(d.carries, str) else d.carries.get(c.name, ())
            yield from ((c.name, s) for s in slots)
            yield from (parent(p) for p in c.parents if p in vertices)


def _of_energy(v: Vertex, terms: AbstractSet[str]) -> set[str]:
    """The slots that what a vertex sends or holds is made of."""
    if v.energy is None:
        return {"error"}
    texts = [getattr(v.energy, term) for term in ("send", "hold") if term in terms]
    return {n for text in texts for n in names(parse(text)) if n not in TERMS}


def handed(program: Program) -> tuple[str, ...]:
    """The slots that `infer` returns: the error, then the state, then what else `learn` reads and does not make.

    Gradients that inference has assigned are handed on as well: learning adds to them, or returns them as they are.
    At last what is kept between calls, where inference moves it, and what the program shows `also`.
    """
    assigned = {(d.vertex, d.slot) for d in flat(program.infer)}
    children, vertices, made = program.pc.children(), {v.name: v for v in program.pc.vertices}, set[Place]()
    there, numbers = set(assigned), program.numbers
    live: dict[str, None] = {"error": None, **({program.state: None} if program.state else {})}
    for d in flat(program.learn):
        found = reads(d, numbers, children, vertices, there)
        live.update(dict.fromkeys(sorted({p[1] for p in found if p in assigned and p not in made})))
        made.add((d.vertex, d.slot))
        there.add((d.vertex, d.slot))
    if any(slot == "gradient" and (owner, slot) not in made for owner, slot in assigned):
        live["gradient"] = None
    live |= dict.fromkeys(slot for owner, slot in program.kept if (owner, slot) in assigned)
    live |= dict.fromkeys(program.also)
    return tuple(live)
