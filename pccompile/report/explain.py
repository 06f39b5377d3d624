"""One vertex in full: where it comes from, its equations and local rules, and the code that was generated for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from pccompile.backends.torch import SWEEP, Source, emit
from pccompile.diagnostics import listing, printable
from pccompile.ir import ForEach, PCGraph, Vertex
from pccompile.ops import equations
from pccompile.pipeline import Compiled
from pccompile.report.places import find, source_line
from pccompile.report.tables import Page, Table, count, shortened
from pccompile.runtime.module import CompiledModule

MOST = 4
"""So many vertices that a name means are explained one by one; more are listed."""
WAYS = {
    "elementwise": "elementwise, the slope of its formula times the error",
    "linear": "linear, the adjoint",
    "multilinear": "multilinear, the adjoint in each argument",
    "selection": "selection, back to the entries that were chosen",
    "composite": "composite, a fused rule",
    "context": "carries no gradient",
    "dropped": "the slope is left out, as derivatives are dropped",
    "traced": "traced from torch's derivative when it was compiled",
}


Entry = tuple[str, str]
"""A title, '' where it is that of the line before, and a line."""


def explain(pc: CompiledModule, vertex: str | None = None) -> Page:
    """The page about the vertices that `vertex` means, or about all.

    vertex: a name of a vertex, module or operation, or a pattern of such names, as `report.places.find` takes it.
    Raises CompileError where nothing has that name.
    """
    compiled = pc.compiled
    if vertex is None:
        return _overview(compiled, compiled.pc.vertices)
    found = find(compiled.pc, vertex)
    if len(found) > MOST:
        return _overview(compiled, found)
    model: nn.Module = pc.__dict__["model"]
    pages = [_Explainer(compiled, model, v).page() for v in found]
    return Page(tuple(part for i, page in enumerate(pages) for part in (*([""] if i else []), *page)))


def _overview(compiled: Compiled, vertices: tuple[Vertex, ...]) -> Page:
    """A table of vertices, and how many rules were derived in which way."""
    rows = tuple(
        (
            v.name,
            " · ".join(equations.short(n.op) for n in equations.working(v)) if v.prediction else "output",
            str(v.type),
            ", ".join(dict.fromkeys(v.how.values())) or "–",
            f"{v.where.file}:{v.where.line}" if v.where.file else v.where.module,
        )
        for v in vertices
    )
    return Page(
        (
            Table(("vertex", "operations", "type", "rules", "place"), rows),
            "",
            f"{count(len(vertices), 'vertex', 'vertices')}; {rules(vertices)}",
        )
    )


def rules(vertices: tuple[Vertex, ...]) -> str:
    """How many rules were derived in which way."""
    families = Counter(how for v in vertices for how in v.how.values())
    return "rules: " + (", ".join(f"{n} {family}" for family, n in families.most_common()) or "none")


class _Explainer:
    def __init__(self, compiled: Compiled, model: nn.Module, vertex: Vertex) -> None:
        self.compiled, self.graph, self.model, self.v = compiled, compiled.pc, model, vertex
        self.children = self.graph.children()[vertex.name]

    def page(self) -> list[str]:
        """All of it, line by line."""
        kind = "output" if self.v.name in self.graph.clamped else "vertex"
        head = f"{kind} {self.v.name}"
        entries = (*self.place(), *self.neighbours(), *self.equations(), *self.learning(), *self.derivation())
        return [head, *(f"  {title:<11} {text}" for title, text in entries), *self.code()]

    def facts(self) -> dict[str, tuple[str, ...]]:
        """What a vertex is and does, by title: all but where it was written and the code."""
        found: dict[str, list[str]] = {}
        for title, text in (*self.neighbours(), *self.equations(), *self.learning(), *self.derivation()):
            found.setdefault(title or next(reversed(found)), []).append(text)
        return {title: tuple(texts) for title, texts in found.items()}

    def place(self) -> list[Entry]:
        """Where the user wrote it, and the line."""
        where = self.v.where
        path, line = source_line(where, self.model)
        place = f"{printable(path or where.file)}:{where.line}" if where.file else ""
        shown = " in ".join(filter(None, (place, printable(where.module)))) or "unknown"
        return [("source", shown), *([("", line)] if line else [])]

    def neighbours(self) -> list[Entry]:
        """Type, parents and children."""
        children = shortened([c.name for c in self.children]) or (
            "none: the loss sets its error" if self.v.name in self.graph.clamped else "none"
        )
        return [
            ("type", str(self.v.type)),
            ("parents", shortened([self.described(p) for p in self.v.parents], 12) or "none"),
            ("children", children),
        ]

    def described(self, name: str) -> str:
        """A parent, and what it is if it is no vertex."""
        graph = self.graph.graph
        for kind, table in (("input", graph.inputs), ("parameter", graph.params), ("buffer", graph.buffers)):
            if name in table:
                return f"{graph.origin.get(name, name)} ({kind})"
        return name if name in self.graph.names else f"{name} (fixed)"

    def equations(self) -> list[Entry]:
        """Prediction, error, and what each child and parent is sent."""
        own = equations.prediction(self.v) if self.v.prediction else self.v.parents[0]
        lines = [("prediction", f"v̂ = {own}"), ("error", self.error())]
        lines += [("", f"from {c.name}: {equations.message(c, self.v.name)}") for c in self.children]
        sends = [p for p in self.v.messages if p not in self.graph.graph.params]
        for i, p in enumerate(sends):
            lines.append(("" if i else "messages", f"to {p}: {self.message(p)}"))
        return lines

    def error(self) -> str:
        """The equation of the error, as the algorithm has it."""
        if self.v.name in self.graph.clamped:
            return "ε = −∂L/∂v̂"
        pull = " + ".join(equations.message(c, self.v.name) for c in self.children) or "0"
        pull = pull if len(pull) < 90 else f"Σ Jᵀ ε of {count(len(self.children), 'child', 'children')}"
        if self.compiled.source.moving:
            return f"ε = v − v̂, Δv = η ({pull} − ε)"
        if any(isinstance(s, ForEach) for s in self.compiled.program.infer):
            return f"ε = Σ u, u = z ({pull.replace('ε', 'u')})"
        return f"Δε = η ({pull} − ε)" if self.compiled.program.arguments else f"ε = {pull}"

    def message(self, to: str) -> str:
        v = self.v
        if to in self.graph.graph.params:  # what a weight learns does not read what messages have in its place
            v = replace(v, feedback={k: letter for k, letter in v.feedback.items() if k != to})
        text = equations.message(v, to)
        return text.replace(f"ε[{self.v.name}]", "ε")

    def learning(self) -> list[Entry]:
        """The local rule of each parameter, and who else reads it."""
        params = [p for p in self.v.messages if p in self.graph.graph.params]
        readers, lines = self.graph.children(), list[Entry]()
        for i, p in enumerate(params):
            others = [c.name for c in readers[p] if c is not self.v]
            shared = f"    (and what {listing(others)} adds)" if others else ""
            frozen = "" if p in self.graph.graph.wanted else "    (frozen: not learned)"
            lines.append(
                (
                    "" if i else "learning",
                    f"Δ {printable(self.graph.graph.origin[p])} = {self.message(p)}{shared}{frozen}",
                )
            )
        return lines or [("learning", "no parameters")]

    def derivation(self) -> list[Entry]:
        """How the rule of each operation came about."""
        operations = {n.name: n.op for n in self.v.prediction}
        entries = [f"{operations[n]}: {WAYS.get(how, how)}" for n, how in self.v.how.items() if n in operations]
        return [("" if i else "rules", e) for i, e in enumerate(dict.fromkeys(entries))]

    def code(self) -> list[str]:
        """The generated lines."""
        blocks = self.compiled.source.blocks
        found = lines_of(self.v, self.graph, written_out(self.compiled))
        return [
            line
            for name, text in found
            for line in (
                "",
                f"  # {name}{f', in {blocks[name, self.v.name]}' if (name, self.v.name) in blocks else ''}",
                *(f"    {ln}" for ln in text.splitlines()),
            )
        ]


def facts_of(compiled: Compiled, model: nn.Module, vertex: Vertex) -> dict[str, tuple[str, ...]]:
    """Type, neighbours, equations and rules of a vertex, each as the lines that a reader sees."""
    return _Explainer(compiled, model, vertex).facts()


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
