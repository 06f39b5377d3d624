"""What the names in update equations stand for: the values of the slots, and what a vertex's rules make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from pccompile.backends.torch.equations import Equations
from pccompile.backends.torch.message_sums import Term, early, total, weighed
from pccompile.backends.torch.statements import Label, label_of
from pccompile.backends.torch.writer import Writer
from pccompile.ir import Arg, Do, Node, Program, Ref, Vertex
from pccompile.ir.equations import parse
from pccompile.ops import definition

if TYPE_CHECKING:
    from pccompile.backends.torch.lists import Lists

Place = tuple[str, str]
"""A vertex or a leaf, and one of its slots."""


class Terms:
    """The values of a program as it is written, step by step.

    slots: what each slot holds now. env: the values of the graph that prediction has computed. texts: how leaves are
    read that are in no table. apart: which messages are sent slot by slot. lists: the lists that vertices have by
    now, where slots are members of lists. loss_constants: part of the errors of outputs is computed once. heard: which
    value the last exchange has brought for a slot, and at which place in it.
    """

    def __init__(self, program: Program, loss_constants: bool) -> None:
        self.program, self.pc, self.graph, self.loss_constants = program, program.pc, program.pc.graph, loss_constants
        self.children = self.pc.children()
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.w = Writer()
        self.slots: dict[Place, Ref] = {}
        self.env: dict[str, Ref] = {}
        self.texts: Mapping[str, str] = {}
        self.apart: frozenset[Place] = frozenset()
        self.lists: Lists | None = None
        self.heard: Mapping[Place, tuple[Ref, int]] = {}
        self.by_name: dict[str, dict[str, Node]] = {}
        self.written: dict[tuple[str, Ref], tuple[dict[str, Ref], dict[Ref, Ref]]] = {}
        ranks = {name: len(t.shape) for name, t in {**self.graph.params, **self.graph.inputs}.items()}
        ranks |= {v.name: len(v.type.shape) for v in self.pc.vertices}
        here = lambda slot: {v: self.slots[v, slot] for v in self.pc.names if (v, slot) in self.slots}  # noqa: E731
        self.equations = Equations(self.w, program.numbers, self.term, here, ranks)

    def snapshot(self) -> tuple[dict[Place, Ref], dict[object, Ref]]:
        """What is known at this point."""
        return dict(self.slots), dict(self.w.known)

    def restore(self, state: tuple[dict[Place, Ref], dict[object, Ref]]) -> None:
        """Forget what is known beyond a snapshot."""
        self.slots, self.w.known, self.written = dict(state[0]), dict(state[1]), {}

    def leaf(self, name: str) -> Ref:
        """A parameter, input or buffer."""
        if name in self.texts:
            return self.w.given(self.texts[name], Label(name))
        return self.w.leaf(*self.table_entry(name), Label(name))

    def table_entry(self, name: str) -> tuple[str, str]:
        """The table and the key of a parameter, input or buffer."""
        table = "params" if name in self.graph.params else "inputs" if name in self.graph.inputs else "buffers"
        return table, self.graph.origin.get(name, name)

    def forward(self, name: Ref) -> Ref:
        """A value of the graph as prediction has it."""
        return self.env[name] if name in self.env else self.leaf(name)

    def of_one_sample(self, place: Place, value: Ref) -> Ref:
        """`value` of a slot, which stretches over the samples where the slot is one that lasts."""
        return self.equations.reduced(value) if place in self.program.kept else value

    def term(self, d: Do, name: str) -> Arg:
        """What a name in an equation stands for."""
        match name:
            case "pull":
                return self.pull(d)
            case "predict":
                v = self.vertices[d.vertex]
                nodes = {n.name: n for n in v.prediction}
                return Term(v, v.result, Ref(""), self.parents(v.name, d.at), nodes, self.w).write()
            case "zero":
                return self.zeros(d.vertex)
            case "clamp" if d.vertex not in self.pc.observed:
                return self.clamp(d)
            case "seed":
                return self.w("aten.neg.default", self.w("aten.ones_like.default", self.slots[d.vertex, "prediction"]))
            case "given":
                leaf = self.pc.observed[d.vertex]
                return self.forward(Ref(leaf)) if leaf else self.zeros(d.vertex)
            case "send" | "hold" | "clamp":  # of an observed vertex, what is clamped is its energy
                energy = self.vertices[d.vertex].energy
                slope = getattr(energy, name.replace("clamp", "send")) if energy else "error"
                return self.equations.value(d, parse(slope))
            case "heard":
                brought, index = self.heard[d.vertex, d.slot]
                return self.w.call("getitem", {"of": brought, "index": index}, label_of(d.slot, d.vertex))
            case "noise":
                return self.w("aten.randn_like.default", self.slots[d.vertex, "prediction"], label=Label("noise"))
        return self.slots[d.vertex, name]

    def is_error(self, vertex: str, term: str) -> bool:
        """Whether a term is the vertex's error."""
        return term in ("send", "hold") and self.vertices[vertex].energy is None

    def energy(self, v: Vertex) -> Ref:
        """The energy of each element, where inference last looked: that the value has moved since does not count."""
        assert v.energy is not None
        if v.name in self.pc.clamped:  # whatever weight inference gives the loss
            slot, value = "error", self.clamp(Do(v.name, "error", "clamp"))
        elif v.name in self.pc.observed:
            slot, value = "prediction", self.slots[v.name, "prediction"]
        else:
            look = Do(v.name, "value", "prediction + error")
            slot, value = "value", cast(Ref, self.equations.value(look, parse(look.equation)))
        now, self.slots[v.name, slot] = self.slots[v.name, slot], value
        density = self.equations.value(Do(v.name, "energy", v.energy.density), parse(v.energy.density))
        self.slots[v.name, slot] = now
        return cast(Ref, density)

    def parents(self, vertex: str, at: str) -> dict[str, Ref]:
        """The values that a vertex's rules read, its parents taken at slot `at`."""
        values: dict[str, Ref] = {}
        for p in self.vertices[vertex].parents:
            if p in self.vertices:
                values[p] = self.slots[p, at if (p, at) in self.slots else "prediction"]
            else:
                values[p] = self.forward(Ref(p))
        drawn = (n.name for n in self.vertices[vertex].prediction if definition(n.op).random)
        return values | {name: self.env[name] for name in drawn}

    def pull(self, d: Do) -> Ref:
        """The sum of the messages to a vertex or leaf; zeros where nothing is sent."""
        terms = []
        for child in self.children[d.vertex]:
            weights = {d.carries: 1.0} if isinstance(d.carries, str) else d.carries.get(child.name, {})
            if not weights:
                continue
            if self.lists and (whole := self.lists.sum(child.name, weights)) is not None:
                terms.append(self.message(child, whole, d))
                continue
            parts = {slot: self.slots[child.name, slot] for slot in weights}
            sent = [(parts[slot], weight) for slot, weight in weights.items()]
            if (d.vertex, child.name) not in self.apart:
                sent = [early(self.w, *weighed(self.w, parts, weights), child, self.vertices.get(d.vertex))]
            terms += [self.message(child, err, d, gain) for err, gain in sent]
        return total(self.w, terms) if terms else self.zeros(d.vertex)

    def message(self, child: Vertex, err: Ref, d: Do, gain: float = 1.0) -> Term:
        """What a child whose error is `err` sends to the owner of a slot, times `gain`."""
        read = self.parents(child.name, d.at)
        written = self.written_of(child.name, err, read)
        nodes = self.nodes_of(child)
        return Term(child, child.messages[d.vertex], err, read, nodes, self.w, gain, d.vertex, written)

    def zeros(self, name: str) -> Ref:
        """Zeros of the shape of a vertex, a parameter or an input."""
        like = self.slots.get((name, "prediction")) or self.forward(Ref(name))
        return self.w("aten.zeros_like.default", like, label=Label(f"zero_{name}"))

    def written_of(self, child: str, err: Ref, read: Mapping[str, Ref]) -> dict[Ref, Ref]:
        """What has been written of a vertex's rules for this error and these values of its parents."""
        known = self.written.get((child, err))
        if known is None or known[0] != read:
            known = self.written[child, err] = dict(read), {}
        return known[1]

    def nodes_of(self, vertex: Vertex) -> dict[str, Node]:
        """A vertex's operations by name."""
        if vertex.name not in self.by_name:
            self.by_name[vertex.name] = {n.name: n for n in (*vertex.prediction, *vertex.rules)}
        return self.by_name[vertex.name]

    def clamp(self, d: Do) -> Ref:
        """Minus the loss gradient at an output: given, or evaluated anew where the predictions move."""
        index, label = self.pc.clamped.index(d.vertex), label_of("error", d.vertex)
        if not self.program.state:
            return self.w.given(f"output_errors[{index}]", label)
        vertices = {o.value: o.vertex for o in self.pc.outputs}
        predictions = tuple(
            self.slots[vertices[o], "prediction"] if o in vertices else self.forward(Ref(o)) for o in self.graph.outputs
        )
        args: dict[str, Arg] = {"outputs": predictions}
        if self.loss_constants:
            first = tuple(self.forward(Ref(o)) for o in self.graph.outputs)
            args["constants"] = self.w.call("clamp_constants", {"outputs": first}, Label("loss_constants"))
        call = self.w.call("clamp", args, Label("output_errors"))
        return self.w.call("getitem", {"of": call, "index": index}, label)
