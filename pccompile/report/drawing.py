"""The graph of a model's vertices for papers and READMEs: Graphviz and Mermaid, modules as boxes around vertices.

Names of a model stand in quotes, with everything escaped that the languages would read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from pccompile.diagnostics import printable
from pccompile.ir import PCGraph, Vertex
from pccompile.ops import equations

Box = dict[str, "Box | Vertex"]


def dot(pc: PCGraph) -> str:
    """Graphviz source: a cluster for each module with several vertices, a double border around outputs."""
    numbers = {v.name: f"v{i}" for i, v in enumerate(pc.vertices)}
    clamped = set(pc.clamped)

    def vertex(v: Vertex, indent: str) -> str:
        more = ", peripheries=2" if v.name in clamped else ""
        return f"{indent}{numbers[v.name]} [label={_quoted(_label(v))}{more}];"

    def opened(name: str, number: int, indent: str) -> str:
        return f"{indent}subgraph cluster_{number} {{ label={_quoted(name)};"

    body = _drawn(_boxes(pc), vertex, opened, "}", "  ")
    edges = [f"  {numbers[p]} -> {numbers[v.name]};" for v in pc.vertices for p in v.parents if p in numbers]
    return "\n".join(["digraph {", "  node [shape=box, fontname=sans];", *body, *edges, "}", ""])


def mermaid(pc: PCGraph) -> str:
    """Mermaid source, which GitHub draws in a block of that name: a subgraph for each module with several vertices."""
    numbers = {v.name: f"v{i}" for i, v in enumerate(pc.vertices)}
    clamped = set(pc.clamped)

    def vertex(v: Vertex, indent: str) -> str:
        left, right = ("[[", "]]") if v.name in clamped else ("[", "]")
        return f'{indent}{numbers[v.name]}{left}"{_entities(_label(v))}"{right}'

    def opened(name: str, number: int, indent: str) -> str:
        return f'{indent}subgraph m{number}["{_entities(name)}"]'

    body = _drawn(_boxes(pc), vertex, opened, "end", "  ")
    edges = [f"  {numbers[p]} --> {numbers[v.name]}" for v in pc.vertices for p in v.parents if p in numbers]
    return "\n".join(["flowchart TD", *body, *edges, ""])


def _label(v: Vertex) -> str:
    """A vertex's name, and what it computes."""
    operations = " · ".join(equations.short(n.op) for n in equations.working(v)) if v.prediction else "output"
    return printable(f"{v.name}: {operations}")


def _boxes(pc: PCGraph) -> Box:
    """Vertices by module, each module within the one around it; one with a single vertex is that vertex."""
    sizes: dict[tuple[str, ...], int] = {}
    for v in pc.vertices:
        for path in _paths(v):
            sizes[path] = sizes.get(path, 0) + 1
    root: Box = {}
    for v in pc.vertices:
        box = root
        for path in _paths(v):
            if sizes[path] > 1:
                inner = box.setdefault(f"module {'.'.join(path)}", {})
                assert isinstance(inner, dict)
                box = inner
        box[f"vertex {v.name}"] = v
    return root


def _paths(v: Vertex) -> Iterator[tuple[str, ...]]:
    parts = tuple(v.where.module.split("@")[0].split(".")) if v.where.module else ()
    yield from (parts[: i + 1] for i in range(len(parts)))


def _drawn(
    root: Box,
    vertex: Callable[[Vertex, str], str],
    opened: Callable[[str, int, str], str],
    closed: str,
    indent: str,
) -> list[str]:
    """The lines of all boxes and vertices, those of a box between its two ends."""
    count = 0

    def lines(box: Box, indent: str) -> Iterator[str]:
        nonlocal count
        for key, inside in box.items():
            if isinstance(inside, Vertex):
                yield vertex(inside, indent)
                continue
            count += 1
            yield opened(key.removeprefix("module "), count, indent)
            yield from lines(inside, indent + "  ")
            yield f"{indent}{closed}"

    return list(lines(root, indent))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _entities(text: str) -> str:
    """Text for a label of Mermaid, which reads entities as HTML does, with # for &."""
    return "".join(c if c.isalnum() or c in " ._:·-" else f"#{ord(c)};" for c in text)
