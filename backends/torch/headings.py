"""The comments above vertices: what a vertex is, its equation and its place in the user's source."""

from __future__ import annotations

from collections.abc import Callable

from pccompile.diagnostics import printable
from pccompile.ir import ForEach, Program, Vertex
from pccompile.ops import equations


class Headings:
    """The comments of one program's file."""

    def __init__(self, program: Program) -> None:
        self.program, self.pc, self.moving = program, program.pc, bool(program.state)
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.children = self.pc.children()
        self.damped = any(isinstance(s, ForEach) for s in program.infer)

    def of(self, function: str) -> Callable[[str], str]:
        """The comments in one of the functions; learning has none."""
        return self.forward if function == "predict" else self.error if function != "learn" else lambda vertex: ""

    def forward(self, vertex: str) -> str:
        """A vertex's operation, its prediction and its place in the user's source."""
        v = self.vertices[vertex]
        return _heading(v, f"v̂ = {equations.prediction(v)}" if v.prediction else "an output")

    def error(self, vertex: str) -> str:
        """A vertex's operation, its error and its place in the user's source."""
        v = self.vertices.get(vertex)
        if v is None:
            return ""
        if vertex in self.pc.clamped:
            return _heading(v, "ε = −∂L/∂v̂")
        if vertex in self.pc.observed:
            return _heading(v, f"ε = −∂E/∂v̂, E = {v.energy}")
        sent = [equations.message(c, vertex) for c in self.children[vertex]]
        text = " + ".join(sent) or "0"
        text = text if len(text) < 90 else f"Σ Jᵀ ε of {len(sent)} children"
        if self.moving:
            own = f"h), h = ∂E/∂v, E = {v.energy}" if v.energy else "ε)"
            return _heading(v, f"ε = v − v̂, Δv = η ({text} − {own}")
        if self.damped:
            return _heading(v, f"u = z ({text.replace('ε', 'u')}), Δε = u")
        return _heading(v, f"Δε = η ({text} − ε)" if self.program.arguments else f"ε = {text}")


def _heading(v: Vertex, equation: str) -> str:
    ops = " · ".join(equations.short(n.op) for n in equations.working(v)) if v.prediction else "output"
    place = f"{printable(v.where.file, 100)}:{v.where.line}" if v.where.file else ""
    return "    ".join(filter(None, (f"{printable(v.where.module or v.name, 100)} · {ops}", equation, place)))
