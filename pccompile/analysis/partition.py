"""Which of several processes owns each vertex: contiguous parts of a graph of about equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pccompile.analysis.cost import at, products, size_in_bytes
from pccompile.diagnostics import CompileError
from pccompile.ir import PCGraph, Vertex

PER_BYTE = 2.0
"""A byte that is written costs as much as so many floating-point operations, by which layers without products count."""


def vertex_costs(pc: PCGraph, lengths: Mapping[str, int]) -> dict[str, float]:
    """What predicting each vertex costs where free dimensions have these lengths, 1 where nothing is said of them."""
    types, known = pc.graph.types, {name: lengths.get(name, 1) for name in pc.graph.dims}
    return {
        v.name: sum(at(products(n.op, n.args, types, n.type), known) for n in v.prediction)
        + PER_BYTE * at(size_in_bytes(v.type), known)
        for v in pc.vertices
    }


def by_cost(pc: PCGraph, lengths: Mapping[str, int], ranks: int) -> dict[str, int]:
    """A rank for each vertex: parts that are contiguous in the order of the graph, the costliest as cheap as can be.

    Vertices that share a parameter stay together, and so do those whose errors the loss sets, on the last rank.
    Raises CompileError where fewer parts than ranks are left.
    """
    costs, ends = vertex_costs(pc, lengths), set(pc.clamped)
    units = _together(pc, [v for v in pc.vertices if v.name not in ends])
    units.append([v.name for v in pc.vertices if v.name in ends])
    if len(units) < ranks:
        what = f"the model has {len(units)} parts that share no parameter, fewer than {ranks} processes"
        raise CompileError(what, hint="take fewer processes, or a finer granularity")
    sizes = [sum(costs[name] for name in unit) for unit in units]
    firsts = _cuts(sizes, ranks)
    return {name: sum(i >= first for first in firsts) for i, unit in enumerate(units) for name in unit}


def _together(pc: PCGraph, vertices: Sequence[Vertex]) -> list[list[str]]:
    """The vertices in order, those between readers of one parameter or of one buffer that is written in one unit."""
    kept = (pc.graph.params.keys() & pc.graph.wanted) | pc.graph.updates.keys()
    last = {p: i for i, v in enumerate(vertices) for p in v.parents if p in kept}
    units: list[list[str]] = []
    end = -1
    for i, v in enumerate(vertices):
        if i > end:
            units.append([])
        units[-1].append(v.name)
        end = max([end, *(last[p] for p in v.parents if p in kept)])
    return units


def _cuts(sizes: Sequence[float], ranks: int) -> list[int]:
    """Where each part but the first begins, so that the largest sum is the least."""
    n = len(sizes)
    sums = [0.0]
    for size in sizes:
        sums.append(sums[-1] + size)
    best = [sums[i] for i in range(n + 1)]
    choice: list[list[int]] = []
    for part in range(1, ranks):
        now, chosen = [float("inf")] * (n + 1), [0] * (n + 1)
        for i in range(part + 1, n + 1):
            for j in range(part, i):
                largest = max(best[j], sums[i] - sums[j])
                if largest < now[i]:
                    now[i], chosen[i] = largest, j
        best = now
        choice.append(chosen)
    cuts, i = [], n
    for chosen in reversed(choice):
        i = chosen[i]
        cuts.append(i)
    return cuts[::-1]


def by_module(pc: PCGraph, ranks: Mapping[str, int]) -> dict[str, int]:
    """A rank for each vertex: that of the longest path in `ranks` that its module lies in.

    A vertex in none of them goes where the last of its parents is. Raises CompileError for a path without vertices.
    """
    used, found = set[str](), dict[str, int]()
    for v in pc.vertices:
        paths = [m for m in ranks if f"{v.where.module}.".startswith(f"{m}.") or not m]
        above = [found[p] for p in v.parents if p in found]
        if paths:
            used.add(nearest := max(paths, key=len))
            found[v.name] = ranks[nearest]
        else:
            found[v.name] = max(above, default=min(ranks.values(), default=0))
    if unused := [m for m in ranks if m not in used]:
        raise CompileError(
            f"ranks names {unused[0]!r}, in which no vertex is", hint="take paths of modules that have vertices"
        )
    return found
