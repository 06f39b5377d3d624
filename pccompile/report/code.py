"""The lines of a generated file that belong to one vertex, as the printer recorded them."""

from __future__ import annotations

from collections.abc import Iterator

from pccompile.backends.torch import SWEEP, Source, emit
from pccompile.ir import PCGraph, Vertex
from pccompile.pipeline import Compiled


def written_out(compiled: Compiled) -> Source:
    """The generated file, what repeats in it written out: each vertex under its own names."""
    if not compiled.source.blocks:
        return compiled.source
    return emit(compiled.program, compiled.loss, outlining=None)


def owners_of(vertex: Vertex, pc: PCGraph) -> tuple[str, ...]:
    """A vertex and the parameters that it sends messages to."""
    return (vertex.name, *(p for p in vertex.messages if p in pc.graph.params))


def sections(source: Source, owners: tuple[str, ...]) -> Iterator[str]:
    """The functions that have lines of `owners`: prediction, and then the sweep if it has any, else the two phases."""
    behind = (SWEEP,) if source.map.numbers(SWEEP, *owners) else ("infer", "learn")
    yield from (f for f in ("predict", *behind) if source.map.numbers(f, *owners))


def lines_of(vertex: Vertex, pc: PCGraph, source: Source) -> Iterator[tuple[str, str]]:
    """Function by function, the lines that compute a slot of `vertex`, and those that learn its parameters.

    They are whole statements with the loops around them. Where an error is nothing but another one, it is the entry of
    what inference returns.
    """
    owners = owners_of(vertex, pc)
    found = {f: source.map.excerpt(source.text, f, *owners) for f in sections(source, owners)}
    returned = source.map.results.get(("infer", ("error", vertex.name)))
    if returned and not {SWEEP, "infer"} & set(found):
        found["infer"] = f'"{vertex.name}": {returned}'
    yield from ((f, found[f]) for f in ("predict", SWEEP, "infer", "learn") if f in found)
