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


def lines_of(vertex: Vertex, pc: PCGraph, source: Source) -> Iterator[tuple[str, str]]:
    """Function by function, the lines that compute a slot of `vertex`, and those that learn its parameters.

    They are whole statements with the loops around them. Where an error is nothing but another one, it is the entry of
    what inference returns.
    """
    parameters = [p for p in vertex.messages if p in pc.graph.params]

    def excerpt(function: str) -> str:
        return source.map.excerpt(source.text, function, vertex.name, *parameters)

    parts = [("predict", excerpt("predict"))]
    if swept := excerpt(SWEEP):
        parts.append((SWEEP, swept))
    else:
        returned = source.map.results.get(("infer", ("error", vertex.name)))
        settled = excerpt("infer") or (f'"{vertex.name}": {returned}' if returned else "")
        parts += [("infer", settled), ("learn", excerpt("learn"))]
    yield from ((name, text) for name, text in parts if text)
