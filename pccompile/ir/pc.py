"""The predictive-coding graph: vertices, each with a value, a prediction, an error and local rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pccompile.diagnostics import NOWHERE, CompileError, Location
from pccompile.ir.graph import Graph, Node, Ref, TensorType, live

ERROR = Ref("err")
"""How the rules of a vertex call its own error."""


@dataclass(frozen=True, slots=True)
class Vertex:
    r"""A value with its prediction, its error and the rules that need only its neighbours.

        error        ε = v − v̂(parents)
        energy       ½ εᵀ ε
        messages[p]  J_pᵀ err, what this vertex sends its parent p

    `prediction` computes `result` from `parents` (values, parameters, inputs and context) by `nodes`; `rules` are the
    operations that turn `err` into the messages, and may also read what `prediction` computes. `how` says how each
    operation's rule was derived.
    """

    name: str
    parents: tuple[str, ...]
    prediction: tuple[Node, ...]
    result: Ref
    type: TensorType
    rules: tuple[Node, ...] = ()
    messages: Mapping[str, Ref] = field(default_factory=dict)
    how: Mapping[str, str] = field(default_factory=dict)
    where: Location = NOWHERE

    def message(self, parent: str) -> tuple[Node, ...]:
        """The operations that the message to `parent` needs, those of the prediction among them."""
        return live((*self.prediction, *self.rules), [self.messages[parent]])


@dataclass(frozen=True, slots=True)
class PCGraph:
    """A model in predictive-coding form. Its free energy is the sum of its vertices' energies and the loss.

    `context` holds what carries no gradient and is computed once, when the model predicts: indices, random draws.
    `reached` are the wanted parameters and inputs from which values lead to an output; those that nevertheless get no
    message, because every derivative on the way is 0, have the gradient 0.
    """

    graph: Graph
    vertices: tuple[Vertex, ...]
    context: tuple[Node, ...]
    outputs: tuple[str, ...]
    reached: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The vertices' names, parents first."""
        return tuple(v.name for v in self.vertices)

    @property
    def latent(self) -> tuple[Vertex, ...]:
        """The vertices that inference may move: all but the outputs."""
        return tuple(v for v in self.vertices if v.name not in self.outputs)

    def children(self) -> dict[str, tuple[Vertex, ...]]:
        """For each value, parameter and input, the vertices that send it a message."""
        found: dict[str, list[Vertex]] = {name: [] for name in (*self.graph.leaves, *self.names)}
        for v in self.vertices:
            for p in v.messages:
                found[p].append(v)
        return {name: tuple(vs) for name, vs in found.items()}

    def __str__(self) -> str:
        lines = ["pc graph {", *(f"  context {n}" for n in self.context)]
        for v in self.vertices:
            kind = "output" if v.name in self.outputs else "vertex"
            lines.append(f"  {kind} %{v.name}: {v.type}  parents {', '.join(v.parents)}")
            lines += [f"    predict  {n}" for n in v.prediction]
            lines += [f"    rule     {n}" for n in v.rules]
            lines += [f"    send {p} ← %{m}" for p, m in v.messages.items()]
        return "\n".join([*lines, "}"])


def verify_local(pc: PCGraph) -> PCGraph:
    """`pc`, once checked for locality: every rule of a vertex reads its parents, its own error and nothing else.

    Raises CompileError at the first violation.
    """
    known = {*pc.graph.leaves, *(n.name for n in pc.context)}
    for v in pc.vertices:
        if unknown := set(v.parents) - known:
            raise CompileError(f"vertex {v.name} has unknown parents {sorted(unknown)}", v.where)
        may: set[str] = set(v.parents)
        for n in v.prediction:
            if out := set(n.inputs) - may:
                raise CompileError(f"the prediction of {v.name} reads {sorted(out)}, not its parents", v.where)
            may.add(n.name)
        if v.result not in may:
            raise CompileError(f"vertex {v.name} does not compute its prediction", v.where)
        may.add(ERROR)
        for n in v.rules:
            if out := set(n.inputs) - may:
                raise CompileError(f"a rule of {v.name} reads {sorted(out)}, not its neighbours", v.where)
            may.add(n.name)
        if strangers := set(v.messages) - set(v.parents):
            raise CompileError(f"{v.name} sends messages to {sorted(strangers)}, not its parents", v.where)
        known.add(v.name)
    if unknown := set(pc.outputs) - set(pc.names):
        raise CompileError(f"outputs {sorted(unknown)} are no vertices")
    return pc
