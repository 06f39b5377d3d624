"""Program to functions: the rules of a predictive-coding graph, instantiated on values in the order of the program."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from pccompile.backends.torch.equations import Equations
from pccompile.backends.torch.keys import gradient_keys, table_of
from pccompile.backends.torch.pulls import Term, early, sent_apart, total, weighed
from pccompile.backends.torch.statements import Function, Key, Label, Lowered, Stop, Turns, label_of
from pccompile.backends.torch.writer import LATE, Writer
from pccompile.ir import (
    Arg,
    Decision,
    Do,
    ForEach,
    Graph,
    Node,
    PCGraph,
    Program,
    Ref,
    Repeat,
    Step,
    Until,
    Update,
    Vertex,
    flat,
    map_refs,
    steps_of,
)
from pccompile.ir.equations import TERMS, parse
from pccompile.ir.liveness import handed
from pccompile.ops import OPS, result_name


def lower(program: Program, record: bool = False, loss_constants: bool = False) -> Lowered:
    """All phases of `program`; with `record`, prediction and loops show what they compute.

    loss_constants: part of the errors of outputs is computed once.
    """
    lowering = _Lowering(program, record, loss_constants)
    predict = lowering.predict()
    if record:
        predict.results |= {("prediction", v): lowering.slots[v, "prediction"] for v in program.pc.names}
    start = lowering.snapshot()
    slots = handed(program)
    infer = lowering.infer(program.infer, slots)
    lowering.restore(start)
    learn = lowering.learn(program, infer.results)
    lowering.restore(start)
    sweep = lowering.sweep(program.sweep) if program.sweep else Function()
    return Lowered(program, predict, infer, learn, sweep, lowering.w.labels, lowering.env)


def lower_loss(
    pc: PCGraph, texts: Mapping[str, str], constants: Mapping[str, str]
) -> tuple[Function, dict[Ref, Label]]:
    """A loss as one function: its value, the only output and, for each of its wanted inputs, minus its gradient.

    texts: how the function reads each input. constants: how it writes each tensor of its own.
    """
    errors = [Do(v.name, "error", "seed" if v.name in pc.clamped else "pull") for v in reversed(pc.vertices)]
    wanted = [Do(name, "gradient", "pull") for name in pc.graph.inputs if name in pc.graph.wanted]
    program = Program(pc, "exact", (*errors, *wanted), ())
    lowering = _Lowering(program)
    lowering.texts = {**texts, **constants}
    forward = lowering.predict()
    backward = lowering.gradients(program.infer)
    return Function([*forward.lines, *backward.lines], forward.results | backward.results), lowering.w.labels


class _Lowering:
    def __init__(self, program: Program, record: bool = False, loss_constants: bool = False) -> None:
        self.program, self.pc, self.record, self.loss_constants = program, program.pc, record, loss_constants
        self.graph: Graph = program.pc.graph
        self.children = self.pc.children()
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.made_by = {str(v.result): v.name for v in self.pc.vertices if v.prediction}
        self.w = Writer()
        self.slots: dict[tuple[str, str], Ref] = {}
        self.env: dict[str, Ref] = {}
        self.texts: Mapping[str, str] = {}
        self.by_name: dict[str, dict[str, Node]] = {}
        self.written: dict[tuple[str, Ref], tuple[dict[str, Ref], dict[Ref, Ref]]] = {}
        self.nodes = {n.name: n for n in self.graph.nodes}
        self.depth = 0
        self.apart: frozenset[tuple[str, str]] = frozenset()
        ranks = {name: len(t.shape) for name, t in {**self.graph.params, **self.graph.inputs}.items()}
        ranks |= {v.name: len(v.type.shape) for v in self.pc.vertices}
        here = lambda slot: {v: self.slots[v, slot] for v in self.pc.names if (v, slot) in self.slots}  # noqa: E731
        self.equations = Equations(self.w, program.numbers, self.term, here, ranks)

    def snapshot(self) -> tuple[dict[tuple[str, str], Ref], dict[object, Ref]]:
        return dict(self.slots), dict(self.w.known)

    def restore(self, state: tuple[dict[tuple[str, str], Ref], dict[object, Ref]]) -> None:
        self.slots, self.w.known, self.written = dict(state[0]), dict(state[1]), {}

    def leaf(self, name: str) -> Ref:
        """A parameter, input or buffer."""
        if name in self.texts:
            return self.w.given(self.texts[name], Label(name))
        return self.w.leaf(*self.place(name), Label(name))

    def place(self, name: str) -> tuple[str, str]:
        """The table and the key of a parameter, input or buffer."""
        table = "params" if name in self.graph.params else "inputs" if name in self.graph.inputs else "buffers"
        return table, self.graph.origin.get(name, name)

    def predict(self) -> Function:
        """The forward sweep, in the order of the graph; then the buffers' new values."""
        w = self.w
        saved: dict[str, set[int]] = {}
        for r in (r for v in self.pc.vertices for r in v.rules if r.op == "getitem"):
            saved.setdefault(str(r["of"]), set()).add(r["index"])
        decided = {d for condition in self.pc.decided.values() for all_ in condition for d in all_}
        ops = {n.name: n.op for n in self.graph.nodes}
        values = {n["of"]: n.name for n in self.graph.nodes if n.op == "getitem" and n["index"] == 0}
        for n in self.graph.nodes:
            args = {k: map_refs(a, self._forward) for k, a in n.args.items()}
            vertex = self.made_by.get(n.name)
            w.vertex = vertex or ""
            further = n.op == "getitem" and n["index"] > 0
            whole = n["of"] if further else n.name
            owner = values.get(whole, whole)
            text = f"{owner}_{result_name(ops[whole], n['index'])}" if further else n.name
            value = w.call(n.op, args, Label(text))
            if vertex:
                value = self.slots[vertex, "prediction"] = w.name(value, label_of("prediction", vertex))
            self.env[n.name] = value
            indices = saved.get(n.name, set()) | {d.result for d in decided if d.cond == n.name and d.result >= 0}
            for index in sorted(indices):
                w.call("getitem", {"of": value, "index": index}, Label(f"{owner}_{result_name(n.op, index)}"))
        for v in self.pc.vertices:
            if not v.prediction:
                w.vertex = v.name
                relayed = self.slots.get((str(v.result), "prediction")) or self._forward(v.result)
                self.slots[v.name, "prediction"] = w.name(relayed, label_of("prediction", v.name))
        w.vertex = ""
        for buffer, updated in self.graph.updates.items():
            table, key = self.place(buffer)
            w.write("copy", {"table": table, "key": key, "of": self._forward(Ref(updated))}, Label(""))
        for path, state in self.graph.states.items():
            w.write("keep", {"table": "buffers", "key": path, "of": self._forward(Ref(state))}, Label(""))
        for kept, lasting in self.program.kept.items():
            path, label = lasting.path(self.pc.home), label_of(lasting.slot, lasting.owner)
            self.slots[kept] = self.of_one_sample(kept, self.w.leaf("buffers", path, label))
        for name in self.pc.feedback:  # a buffer among them is handed on by prediction, as all that messages read
            self.leaf(name)
        results: dict[Key, Ref] = {("output", o): self._forward(Ref(o)) for o in self.graph.outputs}
        return Function(w.take(), results)

    def _forward(self, name: Ref) -> Ref:
        return self.env[name] if name in self.env else self.leaf(name)

    def infer(self, steps: Sequence[Step], slots: Sequence[str]) -> Function:
        """Inference; its results are these slots of all that have them."""
        self.apart = sent_apart(steps, self.vertices)
        self.run(steps)
        owners = (*self.pc.names, *self.graph.leaves)
        results = {(s, o): self.slots[o, s] for s in slots for o in owners if (o, s) in self.slots}
        return Function(self.w.take(), results)

    def learn(self, program: Program, found: Iterable[Key]) -> Function:
        """Learning, from what inference has `found`."""
        keys = gradient_keys(self.graph)
        for slot, owner in found:
            key = keys[owner].key if slot == "gradient" else owner
            value = self.w.entry(table_of(slot), key, label_of(slot, owner))
            self.slots[owner, slot] = self.of_one_sample((owner, slot), value)
        return self.decided(self.gradients(program.learn))

    def sweep(self, steps: Sequence[Step]) -> Function:
        return self.decided(self.gradients(steps))

    def decided(self, f: Function) -> Function:
        """`f`, with None for the gradient of what only branches read that were not taken."""
        for name, condition in self.pc.decided.items():
            key = ("gradient", name)
            if key in f.results:
                alternatives = sorted(map(sorted, condition))
                predicates = tuple(tuple(map(self.predicate, a)) for a in alternatives)
                taken = tuple(tuple(d.taken for d in a) for a in alternatives)
                args = {"self": f.results[key], "predicates": predicates, "taken": taken, "copy": False}
                f.results[key] = self.w.call("pcc.when", args, label_of(*key))
        f.lines += self.w.take()
        return f

    def predicate(self, d: Decision) -> Ref:
        """The value that decides which branch is taken."""
        cond = self.nodes[d.cond]
        if d.result < 0:
            return self._forward(cond["pred"])
        return self.w.call("getitem", {"of": self.env[d.cond], "index": d.result}, Label(f"{d.cond}_{d.result}"))

    def gradients(self, steps: Sequence[Step]) -> Function:
        self.apart = sent_apart(steps, self.vertices)
        self.run(steps)
        results = {(slot, name): value for (name, slot), value in self.slots.items() if slot == "gradient"}
        results |= {(slot, owner): self.slots[owner, slot] for owner, slot in self.program.moved}
        return Function(self.w.take(), results)

    def of_one_sample(self, place: tuple[str, str], value: Ref) -> Ref:
        """`value` of a slot, which stretches over the samples where the slot is one that lasts."""
        return self.equations.reduced(value) if place in self.program.kept else value

    def run(self, steps: Sequence[Step]) -> None:
        for s in steps:
            match s:
                case Do():
                    self.do(s)
                case Repeat():
                    self.loop(s, Turns(s.times), s.until)
                case ForEach():
                    self.loop(s, Turns("", s.names, s.rows))
                case Update():
                    self.update(s)

    def loop(self, loop: Repeat | ForEach, turns: Turns, until: Until | None = None) -> None:
        """A loop; the slots that it assigns and that have a value before it are carried from step to step."""
        assigned = dict.fromkeys((d.vertex, d.slot) for d in flat(loop.body))
        starts = {(slot, vertex): self.slots[vertex, slot] for vertex, slot in assigned if (vertex, slot) in self.slots}
        learns = any(isinstance(s, Update) for s in steps_of(loop.body))
        outermost = not self.depth
        self.written.clear()
        self.depth += 1
        with self.w.loop(turns, starts, learns) as state:
            for (slot, vertex), value in state.values.items():
                self.slots[vertex, slot] = self.of_one_sample((vertex, slot), value)
            phis = dict(state.values)
            if isinstance(loop, Repeat) and loop.still and not self.record:
                self.waiting(loop, phis)
            else:
                self.run(loop.body)
            state.values.update({(slot, vertex): self.slots[vertex, slot] for slot, vertex in phis})
            if self.record and outermost:
                kinds = ("error", "prediction", self.program.state) if self.program.state else ("error",)
                places = ((v, s) for s in kinds for v in self.pc.names)
                state.record = {(s, v): self.slots[v, s] for v, s in places if (v, s) in self.slots}
                state.record |= {("energy", v.name): self.energy(v) for v in self.pc.vertices if v.energy}
            if until:
                state.stop = self.stop(until)
        self.depth -= 1
        self.written.clear()
        for place in assigned:
            self.slots.pop(place, None)
        self.slots |= {(vertex, slot): value for (slot, vertex), value in phis.items()}

    def waiting(self, loop: Repeat, phis: Mapping[Key, Ref]) -> None:
        """A loop's body, each slot from the turn on in which it moves; what has no value before, as soon as read."""
        for d in flat(loop.body):
            start = phis.get((d.slot, d.vertex))
            self.w.since = loop.still.get((d.vertex, d.slot), 0) if start else LATE
            self.do(d, start if self.w.since else None)
        self.w.since = 0

    def stop(self, until: Until) -> Stop:
        """When a loop ends early."""
        owners = [v for v in self.pc.names if (v, until.slot) in self.slots]
        pairs = [(self.slots[v, until.slot], self.slots[v, until.against]) for v in owners]
        return Stop(pairs, until.below, until.least)

    def update(self, u: Update) -> None:
        """Hand the gradients to the function that changes the parameters."""
        keys = gradient_keys(self.graph)
        names = [n for n in self.graph.params if (n, u.slot) in self.slots]
        args = {
            "paths": tuple(keys[n].key for n in names),
            "gradients": tuple(self.slots[n, u.slot] for n in names),
        }
        self.w.vertex = ""
        self.w.write("update", args, Label(""))
        self.w.forget_parameters()
        self.written.clear()

    def do(self, d: Do, old: Ref | None = None) -> None:
        """One update equation. old: what the slot is until it moves."""
        if d.vertex in self.vertices:
            self.w.vertex = d.vertex
        equation = parse(d.equation)
        value = self.equations.value(d, equation)
        assert isinstance(value, Ref), d
        bare = isinstance(equation, ast.Name) and (equation.id not in TERMS or self.plain(d.vertex, equation.id))
        value = value if bare else self.w.name(value, label_of(d.slot, d.vertex))
        self.slots[d.vertex, d.slot] = self.w.keep(value, old, label_of(d.slot, d.vertex)) if old else value

    def plain(self, vertex: str, term: str) -> bool:
        """Whether a term is the vertex's error."""
        return term in ("send", "hold") and self.vertices[vertex].energy is None

    def term(self, d: Do, name: str) -> Arg:
        """What a name in an equation stands for."""
        if name == "pull":
            return self.pull(d)
        if name == "predict":
            v = self.vertices[d.vertex]
            nodes = {n.name: n for n in v.prediction}
            return Term(v, v.result, Ref(""), self.parents(v.name, d.at), nodes, self.w).write()
        if name == "zero":
            return self.zeros(d.vertex)
        if name == "clamp" and d.vertex not in self.pc.observed:
            return self.clamp(d)
        if name == "seed":
            return self.w("aten.neg.default", self.w("aten.ones_like.default", self.slots[d.vertex, "prediction"]))
        if name == "given":
            leaf = self.pc.observed[d.vertex]
            return self._forward(Ref(leaf)) if leaf else self.zeros(d.vertex)
        if name in ("send", "hold", "clamp"):  # of an observed vertex, what is clamped is its energy
            energy = self.vertices[d.vertex].energy
            return self.equations.value(d, parse(getattr(energy, name.replace("clamp", "send")) if energy else "error"))
        if name == "noise":
            return self.w("aten.randn_like.default", self.slots[d.vertex, "prediction"], label=Label("noise"))
        return self.slots[d.vertex, name]

    def energy(self, v: Vertex) -> Ref:
        """The energy of each element, where inference last looked: that the value has moved since does not count."""
        assert v.energy is not None
        if v.name in self.pc.clamped:  # whatever weight inference gives the loss
            error, look = self.slots[v.name, "error"], Do(v.name, "error", "clamp")
            self.slots[v.name, "error"] = self.clamp(look)
            density = cast(Ref, self.equations.value(look, parse(v.energy.density)))
            self.slots[v.name, "error"] = error
            return density
        if v.name in self.pc.observed:
            return cast(Ref, self.equations.value(Do(v.name, "energy", v.energy.density), parse(v.energy.density)))
        moved, look = self.slots[v.name, "value"], Do(v.name, "value", "prediction + error")
        self.slots[v.name, "value"] = cast(Ref, self.equations.value(look, parse(look.equation)))
        density = self.equations.value(Do(v.name, "energy", v.energy.density), parse(v.energy.density))
        self.slots[v.name, "value"] = moved
        return cast(Ref, density)

    def parents(self, vertex: str, at: str) -> dict[str, Ref]:
        """The values that a vertex's rules read, its parents taken at slot `at`."""
        found: dict[str, Ref] = {}
        for p in self.vertices[vertex].parents:
            if p in self.vertices:
                found[p] = self.slots[p, at if (p, at) in self.slots else "prediction"]
            else:
                found[p] = self._forward(Ref(p))
        drawn = (n.name for n in self.vertices[vertex].prediction if n.op in OPS and OPS[n.op].random)
        return found | {name: self.env[name] for name in drawn}

    def pull(self, d: Do) -> Ref:
        """The sum of the messages to a vertex or leaf; zeros where nothing is sent."""
        terms = []
        for child in self.children[d.vertex]:
            weights = {d.carries: 1.0} if isinstance(d.carries, str) else d.carries.get(child.name, {})
            if not weights:
                continue
            parts = {slot: self.slots[child.name, slot] for slot in weights}
            sent = [(parts[slot], weight) for slot, weight in weights.items()]
            if (d.vertex, child.name) not in self.apart:
                sent = [early(self.w, *weighed(self.w, parts, weights), child, self.vertices.get(d.vertex))]
            nodes = self.nodes_of(child)
            for err, gain in sent:
                read = self.parents(child.name, d.at)
                written = self.written_of(child.name, err, read)
                terms.append(Term(child, child.messages[d.vertex], err, read, nodes, self.w, gain, d.vertex, written))
        return total(self.w, terms) if terms else self.zeros(d.vertex)

    def zeros(self, name: str) -> Ref:
        """Zeros of the shape of a vertex, a parameter or an input."""
        like = self.slots.get((name, "prediction")) or self._forward(Ref(name))
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
            self.slots[vertices[o], "prediction"] if o in vertices else self._forward(Ref(o))
            for o in self.graph.outputs
        )
        args: dict[str, Arg] = {"outputs": predictions}
        if self.loss_constants:
            first = tuple(self._forward(Ref(o)) for o in self.graph.outputs)
            args["constants"] = self.w.call("clamp_constants", {"outputs": first}, Label("loss_constants"))
        call = self.w.call("clamp", args, Label("output_errors"))
        return self.w.call("getitem", {"of": call, "index": index}, label)


__all__ = ["Lowered", "lower", "lower_loss"]
