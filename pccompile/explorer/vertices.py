"""The vertices of a model as data: what they are, where they come from, their equations and their code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pccompile.backends.torch import emit
from pccompile.explorer.hierarchy import spots
from pccompile.ir import PCGraph, Vertex
from pccompile.ops import equations
from pccompile.pipeline import Compiled
from pccompile.report.code import owners_of, sections
from pccompile.report.explain import WAYS
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
