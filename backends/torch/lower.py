"""Program to functions: the rules of a predictive-coding graph, instantiated on values in the order of the program."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

from pccompile.backends.torch.keys import gradient_keys, table_of
from pccompile.backends.torch.lists import Lists, groups, listable
from pccompile.backends.torch.message_sums import sent_apart
from pccompile.backends.torch.statements import Function, Key, Label, Lowered, Stop, Turns, label_of
from pccompile.backends.torch.terms import Place, Terms
from pccompile.backends.torch.writer import LATE
from pccompile.ir import (
    Arg,
    Decision,
    Do,
    Exchange,
    ForEach,
    PCGraph,
    Program,
    Ref,
    Repeat,
    Step,
    Until,
    Update,
    flat,
    map_refs,
    steps_of,
)
from pccompile.ir.equations import TERMS, parse
from pccompile.ir.liveness import handed
from pccompile.ops import result_name


def lower(program: Program, record: bool = False, loss_constants: bool = False, by_lists: bool = False) -> Lowered:
    """All phases of `program`; with `record`, prediction and loops show what they compute.

    loss_constants: part of the errors of outputs is computed once. by_lists: several errors of a vertex are a list.
    """
    lowering = _Lowering(program, record, loss_constants, by_lists)
    predict = lowering.predict()
    if record:
        predict.results |= {("prediction", v): lowering.slots[v, "prediction"] for v in program.pc.names}
    start = lowering.terms.snapshot()
    slots = handed(program)
    infer = lowering.infer(program.infer, slots)
    lowering.terms.restore(start)
    learn = lowering.learn(program, infer.results)
    lowering.terms.restore(start)
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
    lowering.terms.texts = {**texts, **constants}
    forward = lowering.predict()
    backward = lowering.gradients(program.infer)
    return Function([*forward.lines, *backward.lines], forward.results | backward.results), lowering.w.labels


class _Lowering:
    def __init__(
        self, program: Program, record: bool = False, loss_constants: bool = False, by_lists: bool = False
    ) -> None:
        self.by_lists = by_lists
        self.program, self.pc, self.graph, self.record = program, program.pc, program.pc.graph, record
        self.made_by = {str(v.result): v.name for v in self.pc.vertices if v.prediction}
        self.parts = {n.name: v.name for v in reversed(self.pc.vertices) for n in v.prediction}
        self.nodes = {n.name: n for n in self.graph.nodes}
        self.terms = Terms(program, loss_constants)
        self.w, self.env = self.terms.w, self.terms.env
        self.depth = 0

    @property
    def slots(self) -> dict[Place, Ref]:
        """What each slot holds now."""
        return self.terms.slots

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
            args = {k: map_refs(a, self.terms.forward) for k, a in n.args.items()}
            vertex = self.made_by.get(n.name)
            w.vertex, w.owner = vertex or "", self.parts.get(n.name, "")
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
                w.vertex, w.owner = v.name, ""
                relayed = self.slots.get((str(v.result), "prediction")) or self.terms.forward(v.result)
                self.slots[v.name, "prediction"] = w.name(relayed, label_of("prediction", v.name))
        w.vertex = w.owner = ""
        for buffer, updated in self.graph.updates.items():
            table, key = self.terms.table_entry(buffer)
            w.write("copy", {"table": table, "key": key, "of": self.terms.forward(Ref(updated))}, Label(""))
        for path, state in self.graph.states.items():
            w.write("keep", {"table": "buffers", "key": path, "of": self.terms.forward(Ref(state))}, Label(""))
        for kept, lasting in self.program.kept.items():
            path, label = lasting.path(self.pc.home), label_of(lasting.slot, lasting.owner)
            self.slots[kept] = self.terms.of_one_sample(kept, self.w.leaf("buffers", path, label))
        for name in self.pc.feedback:  # a buffer among them is handed on by prediction, as all that messages read
            self.terms.leaf(name)
        results: dict[Key, Ref] = {("output", o): self.terms.forward(Ref(o)) for o in self.graph.outputs}
        return Function(w.take(), results)

    def infer(self, steps: Sequence[Step], slots: Sequence[str]) -> Function:
        """Inference; its results are these slots of all that have them."""
        self.phase(steps)
        owners = (*self.pc.names, *self.graph.leaves)
        results = {(s, o): self.slots[o, s] for s in slots for o in owners if (o, s) in self.slots}
        return Function(self.w.take(), results)

    def learn(self, program: Program, settled: Iterable[Key]) -> Function:
        """Learning, from the slots that inference has `settled`."""
        keys = gradient_keys(self.graph)
        for slot, owner in settled:
            key, self.w.owner = (keys[owner].key if slot == "gradient" else owner), owner
            value = self.w.entry(table_of(slot), key, label_of(slot, owner))
            self.slots[owner, slot] = self.terms.of_one_sample((owner, slot), value)
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
            return self.terms.forward(cond["pred"])
        return self.w.call("getitem", {"of": self.env[d.cond], "index": d.result}, Label(f"{d.cond}_{d.result}"))

    def gradients(self, steps: Sequence[Step]) -> Function:
        self.phase(steps)
        results = {(slot, name): value for (name, slot), value in self.slots.items() if slot == "gradient"}
        results |= {(slot, owner): self.slots[owner, slot] for owner, slot in self.program.moved}
        return Function(self.w.take(), results)

    def phase(self, steps: Sequence[Step]) -> None:
        """All steps of a phase, where the slots of vertices may be lists."""
        self.terms.apart = sent_apart(steps, self.terms.vertices)
        lists = self.terms.lists = Lists(self.terms) if self.by_lists and listable(steps) else None
        for group in groups(steps) if lists else [steps]:
            if not (lists and lists.give(group)):
                self.run(group)

    def run(self, steps: Sequence[Step]) -> None:
        for s in steps:
            match s:
                case Do():
                    self.do(s)
                case Repeat():
                    paced = any(isinstance(inner, Exchange) for inner in steps_of(s.body))
                    self.loop(s, Turns(s.times, paced=paced), s.until)
                case ForEach():
                    self.loop(s, Turns("", s.names, s.rows))
                case Update():
                    self.update(s)
                case Exchange():
                    self.exchange(s)

    def loop(self, loop: Repeat | ForEach, turns: Turns, until: Until | None = None) -> None:
        """A loop; the slots that it assigns and that have a value before it are carried from step to step."""
        assigned = dict.fromkeys((d.vertex, d.slot) for d in flat(loop.body))
        starts = {(slot, vertex): self.slots[vertex, slot] for vertex, slot in assigned if (vertex, slot) in self.slots}
        learns = any(isinstance(s, Update) for s in steps_of(loop.body))
        outermost = not self.depth
        self.terms.written.clear()
        self.depth += 1
        with self.w.loop(turns, starts, learns) as state:
            for (slot, vertex), value in state.values.items():
                self.slots[vertex, slot] = self.terms.of_one_sample((vertex, slot), value)
            phis = dict(state.values)
            if isinstance(loop, Repeat) and loop.unmoved and not self.record:
                self.waiting(loop, phis)
            else:
                self.run(loop.body)
            state.values.update({(slot, vertex): self.slots[vertex, slot] for slot, vertex in phis})
            if self.record and outermost:
                kinds = ("error", "prediction", self.program.state) if self.program.state else ("error",)
                places = ((v, s) for s in kinds for v in self.pc.names)
                state.record = {(s, v): self.slots[v, s] for v, s in places if (v, s) in self.slots}
                state.record |= {("energy", v.name): self.terms.energy(v) for v in self.pc.vertices if v.energy}
            if until:
                state.stop = self.stop(until)
        self.depth -= 1
        self.terms.written.clear()
        for place in assigned:
            self.slots.pop(place, None)
        self.slots.update({(vertex, slot): value for (slot, vertex), value in phis.items()})

    def waiting(self, loop: Repeat, phis: Mapping[Key, Ref]) -> None:
        """A loop's body, each slot from the turn on in which it moves; what has no value before, as soon as read."""
        for d in flat(loop.body):
            start = phis.get((d.slot, d.vertex))
            self.w.since = loop.unmoved.get((d.vertex, d.slot), 0) if start else LATE
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
        self.terms.written.clear()

    def exchange(self, e: Exchange) -> None:
        """Tell the neighbours, and know from here on what they tell."""
        self.w.vertex = self.w.owner = ""
        args = {"number": e.number, "told": tuple(self.slots[place] for place in e.told)}
        heard = self.w.write("exchange", args, Label("heard"))
        self.terms.heard = {place: (heard, i) for i, place in enumerate(e.heard)}

    def do(self, d: Do, old: Ref | None = None) -> None:
        """One update equation. old: what the slot is until it moves."""
        own = d.vertex in self.terms.vertices
        self.w.owner = "" if own else d.vertex
        if own:
            self.w.vertex = d.vertex
        equation = parse(d.equation)
        value: Arg = self.terms.lists.equation(d.vertex, equation) if self.terms.lists else None
        value = self.terms.equations.value(d, equation) if value is None else value
        assert isinstance(value, Ref), d
        bare = isinstance(equation, ast.Name) and (
            equation.id not in TERMS or self.terms.is_error(d.vertex, equation.id)
        )
        value = value if bare else self.w.name(value, label_of(d.slot, d.vertex))
        self.slots[d.vertex, d.slot] = self.w.keep(value, old, label_of(d.slot, d.vertex)) if old else value
