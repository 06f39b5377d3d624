"""The predictive-coding graph: vertices, each with a value, a prediction, an error and local rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pccompile.diagnostics import NOWHERE, CompileError, Location
from pccompile.ir.energy import FLAT, Energy
from pccompile.ir.graph import Graph, Node, Ref, TensorType, live
from pccompile.ir.lasting import LASTING, Lasting


class _OwnError(Ref):
    """The error of the vertex whose rule reads it: equal to nothing but itself, whatever a value is called."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> str:
        return "ERROR"


ERROR = _OwnError("err")
"""How the rules of a vertex call its own error. No value's name equals it, `err` neither; it prints as `err`."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output of the model that carries an error: its name in the graph, and the vertex whose value it is."""

    value: str
    vertex: str


@dataclass(frozen=True, slots=True)
class Feedback:
    """A leaf of the compiled module's own: which parameter messages read it instead of, and how it begins.

    drawn: as random numbers of the size of that parameter's; else as a copy of it, or as zeros where there is none.
    mirror: it belongs to a mirrored layer, and stands for no other. direct: the value that an output reaches by it.
    """

    of: str
    drawn: bool
    mirror: bool = False
    direct: str = ""


@dataclass(frozen=True, slots=True)
class Vertex:
    r"""A value with its prediction, its error and the rules that need only its neighbours.

        error        ε = v − v̂(parents)
        energy       ½ εᵀ ε, unless `energy` says another
        messages[p]  J_pᵀ err, what this vertex sends its parent p

    `prediction` computes `result` from `parents` (values, parameters, inputs and context) by `nodes`; `rules` are the
    operations that turn `err` into the messages, and may also read what `prediction` computes. `how` says how each
    operation's rule was derived, `unsent` which operation sends nothing to which argument, as a backward returns None.
    `feedback` says for weights what messages have in their place, as readers write it.
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
    energy: Energy | None = None
    unsent: frozenset[tuple[str, str]] = frozenset()
    feedback: Mapping[str, str] = field(default_factory=dict)

    def message(self, parent: str) -> tuple[Node, ...]:
        """The operations that the message to `parent` needs, those of the prediction among them."""
        return live((*self.prediction, *self.rules), [self.messages[parent]])


class Decision(NamedTuple):
    """That the call `cond` takes its first branch, or does not (`taken`).

    result: the decision of a call inside one of its branches, which is that result of `cond`; −1: its own.
    """

    cond: str
    result: int
    taken: bool


Condition = frozenset[frozenset[Decision]]
"""Alternatives, in each of which all decisions are to hold."""
ALWAYS: Condition = frozenset((frozenset(),))


@dataclass(frozen=True, slots=True)
class Role:
    """What became of an input or vertex that inference infers, or of which it is given something, called `name`.

    vertex: which has its value, the one that moves where one does. given: the leaf with the values that it is given, ""
    for none. mask: the leaf that says which elements these are, "" for all.
    """

    name: str
    vertex: str
    given: str = ""
    mask: str = ""


@dataclass(frozen=True, slots=True)
class PCGraph:
    """A model in predictive-coding form. Its free energy is the sum of its vertices' energies and the loss.

    `context` holds what carries no gradient and is computed once, when the model predicts: indices, random draws.
    `reached` are the wanted parameters and inputs from which values lead to an output; those that nevertheless get no
    message, because every derivative on the way is 0, have the gradient 0. `decided` says of those that a loss reaches
    through some branches only when it does: where it does not, they have no gradient.
    `observed` are vertices that do not move, with the leaf that holds the value of each, "" for zeros: their energy is
    a function of their prediction, like a loss. `roles` say what stands for a name that a user gave a role.
    `feedback` has the leaves that messages read in the place of parameters, and those of mirrored layers, by name.
    `lasting` are slots that energies read and that are kept between calls, by buffers whose paths begin with `home`.
    """

    graph: Graph
    vertices: tuple[Vertex, ...]
    context: tuple[Node, ...]
    outputs: tuple[Output, ...]
    reached: frozenset[str] = frozenset()
    decided: Mapping[str, Condition] = field(default_factory=dict)
    observed: Mapping[str, str] = field(default_factory=dict)
    roles: tuple[Role, ...] = ()
    feedback: Mapping[str, Feedback] = field(default_factory=dict)
    lasting: tuple[Lasting, ...] = ()
    home: str = LASTING

    @property
    def names(self) -> tuple[str, ...]:
        """The vertices' names, parents first."""
        return tuple(v.name for v in self.vertices)

    @property
    def clamped(self) -> tuple[str, ...]:
        """The names of the vertices whose errors the loss sets, in the order of `outputs`."""
        return tuple(o.vertex for o in self.outputs)

    @property
    def ends(self) -> tuple[str, ...]:
        """The names of the vertices that do not move: outputs, whose errors the loss sets, and observed ones."""
        return (*self.clamped, *self.observed)

    @property
    def latent(self) -> tuple[Vertex, ...]:
        """The vertices that inference may move: all but the ends."""
        ends = set(self.ends)
        return tuple(v for v in self.vertices if v.name not in ends)

    @property
    def predicted(self) -> tuple[Vertex, ...]:
        """The vertices that inference may move and that an energy holds to their predictions."""
        return tuple(v for v in self.latent if v.energy != FLAT)

    def children(self) -> dict[str, tuple[Vertex, ...]]:
        """For each value, parameter and input, the vertices that send it a message."""
        found: dict[str, list[Vertex]] = {name: [] for name in (*self.graph.leaves, *self.names)}
        for v in self.vertices:
            for p in v.messages:
                found[p].append(v)
        return {name: tuple(vs) for name, vs in found.items()}

    def levels(self) -> dict[str, int]:
        """For each vertex, the edges of its longest path to an output."""
        children, found = self.children(), dict[str, int]()
        for v in reversed(self.vertices):
            found[v.name] = max((found[c.name] + 1 for c in children[v.name]), default=0)
        return found

    def __str__(self) -> str:
        lines = ["pc graph {", *(f"  context {n}" for n in self.context)]
        clamped = set(self.clamped)
        for v in self.vertices:
            kind = "output" if v.name in clamped else "observed" if v.name in self.observed else "vertex"
            lines.append(f"  {kind} %{v.name}: {v.type}  parents {', '.join(v.parents)}")
            lines += [f"    energy   {v.energy}"] if v.energy else []
            lines += [f"    predict  {n}" for n in v.prediction]
            lines += [f"    rule     {n}" for n in v.rules]
            lines += [f"    send {p} ← %{m}" for p, m in v.messages.items()]
        return "\n".join([*lines, "}"])


def verify_local(pc: PCGraph) -> PCGraph:
    """`pc`, once checked for locality: every rule of a vertex reads its parents, its own error and nothing else.

    Names are distinct: a vertex is called like the value that it predicts or like nothing else, a value that a rule
    makes like nothing else. Raises CompileError at the first violation.
    """
    named = _named_once(pc)
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
            if n.name in named:
                raise CompileError(f"a rule of {v.name} makes %{n.name}, the name of something else", v.where)
            if out := set(n.inputs) - may:
                raise CompileError(f"a rule of {v.name} reads {sorted(out)}, not its neighbours", v.where)
            may.add(n.name)
            named.add(n.name)
        if strangers := set(v.messages) - set(v.parents):
            raise CompileError(f"{v.name} sends messages to {sorted(strangers)}, not its parents", v.where)
        known.add(v.name)
    _check_outputs(pc)
    return pc


def _named_once(pc: PCGraph) -> set[str]:
    """The names of values and vertices, once it is certain that a vertex shares its name with its own value at most."""
    named = {*pc.graph.leaves, *(n.name for n in pc.graph.nodes)}
    vertices: set[str] = set()
    for v in pc.vertices:
        own = any(n.name == v.name for n in v.prediction)
        if v.name in vertices or (v.name in named and not own):
            raise CompileError(f"vertex {v.name} has the name of something else", v.where)
        vertices.add(v.name)
    return named | vertices


def _check_outputs(pc: PCGraph) -> None:
    """Raise CompileError unless each output pairs an output of the graph with a vertex, both once."""
    if unknown := set(pc.clamped) - set(pc.names):
        raise CompileError(f"outputs {sorted(unknown)} are no vertices")
    values = [o.value for o in pc.outputs]
    if unknown := set(values) - set(pc.graph.outputs):
        raise CompileError(f"outputs {sorted(unknown)} are none of the graph")
    if len(set(values)) < len(values) or len(set(pc.clamped)) < len(values):
        raise CompileError("an output is clamped twice")
    children = pc.children()
    for name, leaf in pc.observed.items():
        if name not in pc.names or name in pc.clamped:
            raise CompileError(f"{name} is observed, and no vertex beside the outputs")
        if leaf and leaf not in pc.graph.leaves:
            raise CompileError(f"{name} is observed as {leaf}, which is no input, parameter or buffer")
        if children[name]:
            raise CompileError(f"{name} is observed, and {children[name][0].name} sends it a message")
