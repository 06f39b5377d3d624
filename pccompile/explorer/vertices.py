"""The vertices of a model as data: what they are, where they stand, their equations and their code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pccompile.backends.torch import emit
from pccompile.ir import PCGraph, Vertex
from pccompile.ir.names import identifier
from pccompile.ops import equations
from pccompile.pipeline import Compiled
from pccompile.report.explain import WAYS, owners_of, sections
from pccompile.report.latex import Equations
from pccompile.report.places import source_line


def graph_data(pc: PCGraph, model: nn.Module) -> list[dict[str, Any]]:
    """All vertices, parents first."""
    places, names = spots(pc.vertices, model), set(pc.names)
    return [vertex_data(v, pc, names, model) | {"path": places[v.name].module, "label": places[v.name].label}
            for v in pc.vertices]  # fmt: skip


def vertex_data(v: Vertex, pc: PCGraph, names: set[str], model: nn.Module) -> dict[str, Any]:
    """One vertex without its equations, which depend on the algorithm."""
    file, line = source_line(v.where, model)
    graph, operations = pc.graph, {n.name: n.op for n in v.prediction}
    origin = {str(k): str(path) for k, path in graph.origin.items()}
    role = "output" if v.name in pc.clamped else "observed" if v.name in pc.observed else "hidden"
    return {
        "name": v.name,
        "role": role,
        "type": str(v.type),
        "operations": [equations.short(n.op) for n in equations.working(v)] if v.prediction else [],
        "parents": [str(p) for p in v.parents if p in names],
        "inputs": [str(p) for p in v.parents if p in graph.inputs],
        "parameters": [origin.get(p, p) for p in v.parents if p in graph.params],
        "rules": [[operations[n], WAYS.get(how, how)] for n, how in v.how.items() if n in operations],
        "source": {"file": Path(file or v.where.file).name, "line": v.where.line, "text": line},
    }


def equations_data(compiled: Compiled) -> dict[str, list[dict[str, str]]]:
    """By vertex, its equations in LaTeX: role, tex, to whom, and when."""
    printed = Equations(compiled.program)
    return {
        v.name: [{"role": e.role, "tex": e.tex, "to": e.to, "when": e.when} for e in printed.of(v)]
        for v in compiled.pc.vertices
    }


def code_data(compiled: Compiled) -> dict[str, Any]:
    """The generated file, and for each vertex the numbers of its lines, from 1, by function."""
    source = emit(compiled.program, compiled.loss, outlining=None)  # as it runs, without what records it
    shown: dict[str, dict[str, list[int]]] = {}
    for v in compiled.pc.vertices:
        owners = owners_of(v, compiled.pc)
        shown[v.name] = {f: [*source.map.numbers(f, *owners)] for f in sections(source, owners)}
    results = source.map.results
    aliases = {v: text for (f, (slot, v)), text in results.items() if (f, slot) == ("infer", "error")}
    return {"text": source.text, "lines": shown, "errors": aliases}


@dataclass(frozen=True)
class Spot:
    """The place of a vertex: `module` is a path, its parts joined by dots; a later call of a module says so in it."""

    module: tuple[str, ...]
    label: str


def ancestors(path: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`."""
    parts = path.split(".") if path else []
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def spots(vertices: tuple[Vertex, ...], model: nn.Module) -> dict[str, Spot]:
    """The place of each vertex.

    A module is called anew where vertices come back to it after some that are not in it; a layer of torch's own also
    where the line changes that calls it.
    """
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    calls: dict[str, int] = {}
    lines: dict[str, int] = {}
    inside: set[str] = set()
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for v in vertices:
        path = v.where.module.split("@")[0].replace("/", ".").strip(".")
        chain = list(ancestors(path))
        for m in chain:
            own = m in modules and not [*modules[m].children()] and type(modules[m]).__module__.startswith("torch.nn")
            moved = own and lines.get(m, v.where.line) != v.where.line
            if m not in calls:
                calls[m] = 1
            elif m not in inside or moved:
                calls[m] += 1
            lines[m] = v.where.line
        inside = set(chain)
        found[v.name] = path, {m: calls[m] for m in chain}
    return {name: Spot(_parts(path, at, calls), _label(name, path)) for name, (path, at) in found.items()}


def _parts(path: str, at: Mapping[str, int], calls: Mapping[str, int]) -> tuple[str, ...]:
    """The parts of a path, the calls of a module that is called more than once told apart."""
    last = (m.rpartition(".")[2] for m in ancestors(path))
    whole = zip(ancestors(path), last, strict=True)
    return tuple(f"{part} · call {at[m]}" if calls[m] > 1 else part for m, part in whole)


def _label(name: str, path: str) -> str:
    """A vertex's name without that of its module."""
    prefix = identifier(path) if path else ""
    return name[len(prefix) + 1 :] if prefix and name.startswith(f"{prefix}_") else name
