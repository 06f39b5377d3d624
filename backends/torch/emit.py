"""Program to a Python file that needs nothing but torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pccompile.backends.torch.block_text import print_blocks
from pccompile.backends.torch.code import quoted
from pccompile.backends.torch.context import kept_together, opened, pieces, read_by_calls, taken_once
from pccompile.backends.torch.headings import Headings
from pccompile.backends.torch.keys import Gradient, gradient_keys, table_of
from pccompile.backends.torch.layout import STEP, dictionary, folded, listed, recorded
from pccompile.backends.torch.lists import shorter_by_lists
from pccompile.backends.torch.loss import Clamp
from pccompile.backends.torch.lower import lower
from pccompile.backends.torch.nested import fragments_of, print_fragments
from pccompile.backends.torch.optimise import optimise
from pccompile.backends.torch.outline import Names, Outlined, Outlining, outline
from pccompile.backends.torch.preamble import preamble
from pccompile.backends.torch.printer import Printer
from pccompile.backends.torch.reserved import ARGUMENTS, DOC, STOPPING, SWEEP
from pccompile.backends.torch.runs import Uses
from pccompile.backends.torch.signature import Signature
from pccompile.backends.torch.source_map import SourceMap, source_map
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Function, Key
from pccompile.ir import PCGraph, Program, Ref, flat
from pccompile.ir.names import Namer

WHEN = "pcc.when"
RECORD = ", record=lambda shown: None"
OUTLINING = Outlining()


@dataclass(frozen=True)
class Source:
    """A generated file, and what its functions take and return.

    `outputs` are the model's outputs in the order of `predict`, `errors` the positions among them of those whose error
    the loss sets. `gradients` are what `learn` returns. `moving` says that predictions follow the values, so that
    inference takes targets instead of output errors, `updates` that inference itself changes the parameters. `lasting`
    are the paths of what lasts between calls and changes, which `learn` returns behind the gradients. `blocks` says in
    which function of its own the lines of a vertex stand, by the function that calls it and the vertex; `map` whose
    each line is. `reads` are the paths of the parameters that the functions behind `predict` read.
    """

    text: str
    outputs: tuple[str, ...]
    errors: tuple[int, ...]
    gradients: tuple[Gradient, ...]
    moving: bool
    updates: bool = False
    lasting: tuple[str, ...] = ()
    blocks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    map: SourceMap = field(default_factory=SourceMap)
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Loss:
    """A loss in predictive-coding form. `outputs` and `targets` are its inputs in the order in which it is called."""

    pc: PCGraph
    outputs: tuple[str | None, ...]
    targets: tuple[str | None, ...]
    constants: Mapping[str, str]


def emit(
    program: Program,
    loss: Loss | None = None,
    record: bool = False,
    functional: bool = False,
    lengths: Mapping[str, int] = MappingProxyType({}),
    outlining: Outlining | None = OUTLINING,
) -> Source:
    """The file for `program`, with squared error where there is no `loss`.

    record: let `predict` and `infer` take a function `record`, which `predict` calls with each vertex's prediction, and
    `infer` after each step with each vertex's error (where predictions move, with predictions and values too).
    functional: what a compiler makes good kernels of: no loop writes over memory.
    lengths: the free dimensions as a call has them, for a functional file to weigh products by.
    outlining: when what repeats becomes a function of its own; never where a trace is shown every value.
    """
    return File(program, loss, record, functional, lengths, outlining).source()


class File:
    """What `emit` writes, part by part.

    by_lists: whether several errors of a vertex are a list; None, where that lets layers share functions, and few
    messages are left: what goes through lists takes longer, since each sum of errors is looked up and added up anew.
    """

    def __init__(
        self,
        program: Program,
        loss: Loss | None = None,
        record: bool = False,
        functional: bool = False,
        lengths: Mapping[str, int] = MappingProxyType({}),
        outlining: Outlining | None = OUTLINING,
        by_lists: bool | None = None,
    ) -> None:
        self.program, self.pc, self.loss, self.record = program, program.pc, loss, record
        may = by_lists is None and outlining is not None and not record
        self.by_lists = shorter_by_lists(program) if may else bool(by_lists)
        indices = [self.pc.graph.outputs.index(o.value) for o in self.pc.outputs]
        self.clamp = Clamp(loss, indices, len(self.pc.graph.outputs) - self.pc.graph.further)
        lowered = lower(program, record, self.clamp.has_constants, self.by_lists)
        self.lowered = optimise(lowered, functional, lengths)
        self.signature = Signature(program)
        self.headings = Headings(program)
        self.lasting = {(slot, o): kept.path(self.pc.home) for (o, slot), kept in program.moved.items()}
        functions = (self.lowered.predict, self.lowered.infer, self.lowered.learn, self.lowered.sweep)
        called = dict.fromkeys(c for f in functions for c in fragments_of(f.statements()))
        ops = [*(s.op for f in functions for s in f.statements()), *(n.op for c in called for n in c.nodes)]
        own = (*self.signature.tables, *self.signature.arguments)
        self.reserved = {*ARGUMENTS, *own, *STOPPING, *program.numbers, *self.pc.graph.dims}
        self.speller = Speller(self.reserved)
        self.speller.fragments = {c: self.speller.namer(c.name) for c in called}
        self.reserved |= self.speller.words(ops)
        self.speller.printed = functools.partial(print_fragments, reserved=self.reserved)
        namer = Namer(self.reserved)
        self.names = {r: namer(self.lowered.labels[r].text) for r in self.lowered.context}
        keys = gradient_keys(self.pc.graph)
        learned = [d.vertex for d in flat((*program.infer, *program.learn)) if d.slot == "gradient"]
        self.gradients = {name: keys[name] for name in dict.fromkeys(learned)}
        self.dims: set[str] = set()
        self.popped: list[Ref] = []
        self.dims_first = False
        self.outlined: dict[str, Outlined] = {}
        self.expressions: dict[tuple[str, Key], str] = {}
        if outlining and not record:
            self.outline(outlining)

    def outline(self, outlining: Outlining) -> None:
        """Find what repeats in each function; and which values the sweep takes from the context as it goes."""
        modules = {v.name: v.where.module for v in self.pc.vertices}
        self.speller.namer.used.update(self.names.values())
        for name, f in (("predict", self.lowered.predict), *self.later()):
            places = {} if name == "predict" else self.places(f)
            kept = [*self.names, *self.late_dims()] if name == "predict" else []
            uses = Uses(f, self.lowered.labels, places, kept, name not in ("predict", "infer"))
            names = Names(name, self.headings.of(name), lambda vertex: modules.get(vertex, ""), name != "learn")
            outlined = outline(f, uses, names, self.speller.namer, outlining)
            if outlined.saved >= outlining.least_lines:
                self.outlined[name] = outlined
                self.reserved |= {b.name for b in outlined.blocks}
        if SWEEP in self.outlined:
            self.popped = taken_once(self.outlined[SWEEP].function, self.names)
            self.dims_first = bool(self.popped)
            left = [r for r in self.names if r not in set(self.popped)]
            self.lowered.context[:] = [*left, *reversed(self.popped)]
            self.names = {r: self.names[r] for r in self.lowered.context}

    def parts(self, name: str, f: Function) -> Outlined:
        """A function with its blocks, where it has any."""
        return self.outlined.get(name) or Outlined(f, self.lowered.labels)

    def later(self) -> list[tuple[str, Function]]:
        """The functions behind prediction."""
        return [("infer", self.lowered.infer), ("learn", self.lowered.learn), (SWEEP, self.lowered.sweep)]

    def places(self, f: Function) -> dict[Key, tuple[str, str]]:
        """Under which entry of a table a block may put a result of one of the later functions."""
        keys = gradient_keys(self.pc.graph)
        tables = {slot: table_of(slot) for slot in ("gradient", *self.signature.slots)}
        return {
            (slot, o): (tables[slot], keys[o].key if slot == "gradient" else o)
            for slot, o in f.results
            if slot in tables and (slot, o) not in self.lasting
        }

    def source(self) -> Source:
        """The whole file. Its functions are written first, since they decide what it needs at its top."""
        later = [(name, build()) for name, build in self.bodies()]
        parts = [
            ("predict", self.predict()),
            *self.clamp.functions(self.speller, self.reserved, self.signature.moving),
            *later,
            *([] if self.lowered.sweep.lines else [(SWEEP, self.signature.both())]),
            ("step", self.signature.step()),
        ]
        head = self.head()
        text = "\n\n\n".join([head, *("\n".join(lines) for _, lines in parts)]) + "\n"
        mapped = source_map(parts, head.count("\n") + 4, 2, self.expressions)
        outputs = self.pc.graph.outputs
        errors = tuple(outputs.index(o.value) for o in self.pc.outputs)
        more = self.signature.moving, self.program.updates, tuple(self.lasting.values())
        blocks = {(name, v): b for name, whole in self.outlined.items() for v, b in whole.places.items()}
        statements = [s for _, f in self.later() for s in f.statements()]
        reads = frozenset(str(s.args["key"]) for s in statements if s.op == "leaf" and s.args["table"] == "params")
        return Source(text, outputs, errors, tuple(self.gradients.values()), *more, blocks, mapped, reads)

    def bodies(self) -> list[tuple[str, Callable[[], list[str]]]]:
        """The functions behind prediction by name, but for one that only calls others."""
        taken = self.signature
        given = taken.given + taken.defaults + (RECORD if self.record else "")
        bodies = [
            ("infer", self.body("infer", self.lowered.infer, given)),
            ("learn", self.body("learn", self.lowered.learn, ", ".join([*taken.tables, *taken.learning]))),
        ]
        sweep = self.lowered.sweep
        return bodies + ([(SWEEP, self.body(SWEEP, sweep, taken.given))] if sweep.lines else [])

    def head(self) -> str:
        """The top of the file, when it is known what its functions need."""
        return preamble(self.program, self.signature.moving and self.loss is None, self.speller)

    def predict(self) -> list[str]:
        """The forward function; it is written last, when it is known which lengths the others need."""
        self.speller.dims, self.speller.device = set(), False
        whole = self.parts("predict", self.lowered.predict)
        f, late = whole.function, self.late_dims()
        places = {r: i for i, r in enumerate(self.lowered.context) if r not in late}
        groups = kept_together(f, places)
        blocks = print_blocks(whole.blocks, self.speller, self.reserved, adds=False)
        printer = Printer(f, whole.labels, {}, self.names, self.speller, self.headings.forward, self.reserved)
        printer.together = {call: (printer.names.namer("kept"), rs) for call, rs in groups.items()}
        lines = printer.run(late)
        dims = self.dims | (self.speller.dims & set(self.pc.graph.dims))
        outputs = "".join(f"{printer.names.text(f.results['output', o])}, " for o in self.pc.graph.outputs).strip()
        predictions = {key: printer.names.spelled(v) for key, v in f.results.items() if key[0] == "prediction"}
        shown = folded(STEP, recorded(predictions)) if self.record else []
        handed = {r: self.names[r] for r in self.lowered.context}
        for name, members in printer.together.values():
            handed |= dict.fromkeys(members, "") | pieces(name, members, places)
        context = listed(self.in_context([*filter(None, handed.values())], self.dims))
        first = next((f"params[{quoted(self.pc.graph.origin[p])}]" for p in self.pc.graph.params), None)
        first = first or f"inputs[{quoted(next(iter(self.pc.graph.inputs)))}]"
        return [
            *blocks,
            "@torch.no_grad()",
            f"def predict(params, buffers, inputs{RECORD if self.record else ''}):",
            f'    """{DOC["predict"]}"""',
            *self.device(first),
            *self.sizes(dims),
            *lines,
            *shown,
            "",
            f"    return ({outputs}), {context}",
        ]

    def late_dims(self) -> dict[Ref, list[tuple[str, int]]]:
        """For each value whose size is known only when it has been computed, the lengths to read off it."""
        functions = (self.lowered.predict, self.lowered.infer, self.lowered.learn, self.lowered.sweep)
        used = {d for f in functions for s in f.statements() for d in s.lengths}
        lengths: dict[Ref, list[tuple[str, int]]] = {}
        for name, source in self.pc.graph.dims.items():
            if name in used and source.tensor in self.lowered.made:
                lengths.setdefault(self.lowered.made[source.tensor], []).append((name, source.axis))
        return lengths

    def body(self, name: str, f: Function, given: str) -> Callable[[], list[str]]:
        """One of the later functions; what is returned adds its first lines, once all needs are known."""
        self.speller.dims, self.speller.device = set(), False
        used = f.needs()
        popped = self.popped if name == SWEEP else []
        names = {r: n for r, n in self.names.items() if r in used} | dict.fromkeys(popped, "context.pop()")
        whole = self.parts(name, f)
        f = whole.function
        count = len(self.names) if self.dims_first else 0
        places = {r: i - count for i, r in enumerate(self.names)} if whole.blocks and name != SWEEP else {}
        by_place = read_by_calls(f, places)
        names |= {r: f"context[{i}]" for r, i in by_place.items()}
        blocks = print_blocks(whole.blocks, self.speller, self.reserved, adds=True)
        tables = sorted({table for b in whole.blocks for table, _ in b.places.values()})
        printer = Printer(f, whole.labels, names, {}, self.speller, self.headings.of(name), self.reserved)
        printer.kept_by_caller, printer.places = name != SWEEP, by_place
        made = printer.flow.made
        passed = {k for k, v in f.results.items() if v in made and made[v].op == "given"}
        shared = {k for k, v in f.results.items() if name != "infer" and k not in passed and not printer.flow.owns(v)}
        decided = {k: made[v] for k, v in f.results.items() if v in made and made[v].op == WHEN}
        for k in shared & set(decided):
            decided[k].args = {**decided[k].args, "copy": True}
        lines = printer.run({})
        results: dict[Key, str] = {k: printer.names.text(v) for k, v in f.results.items()}
        results |= {k: f"{results[k]}.clone()" for k in shared - set(decided)}
        self.expressions |= {(name, k): text for k, text in results.items()}
        dims = self.speller.dims & set(self.pc.graph.dims)
        self.dims |= dims
        source = "next(iter(errors.values()))" if name == "learn" else f"{self.signature.given}[0]"
        if name != "learn" and not self.pc.outputs:
            source = "next(c for c in (*params.values(), *context) if isinstance(c, torch.Tensor))"
        device = self.device(source)

        def build() -> list[str]:
            rest = [n if r in names and r not in by_place else "_" for r, n in self.names.items() if r not in popped]
            unpacked = self.in_context(rest, {d: d if d in dims else "_" for d in self.dims})
            part = f"[:{len(unpacked)}]" if popped else ""
            first = opened(unpacked, part, bool(by_place))
            head = [*blocks, "@torch.no_grad()", f"def {name}(params, context, {given}):", f'    """{DOC[name]}"""']
            cleared = [f"    del context{part}" if popped else "    context.clear()"] if name == SWEEP else []
            stored = [f"    {table} = {{}}" for table in tables]
            returned = f"    return {self.returned(name, results, tables)}"
            return [*head, *first, *cleared, *device, *stored, *lines, "", returned]

        return build

    def in_context(self, names: list[str], dims: Mapping[str, str] | set[str]) -> list[str]:
        """What the context holds: values and lengths, these first where values are taken from its end."""
        lengths = [dims[d] if isinstance(dims, Mapping) else d for d in sorted(dims)]
        return [*lengths, *names] if self.dims_first else [*names, *lengths]

    def returned(self, name: str, results: Mapping[Key, str], tables: Collection[str]) -> str:
        """The dictionary of results; `infer` returns one for each slot that it hands on. tables: those begun before."""
        if name != "infer":
            learned = {self.gradients[leaf].key: v for (s, leaf), v in results.items() if s == "gradient"}
            lasting = {path: results[key] for key, path in self.lasting.items()}
            gradients = table_of("gradient")
            more = [dictionary(lasting)] if lasting else []
            return ", ".join([dictionary(learned, gradients if gradients in tables else ""), *more])
        keys = gradient_keys(self.pc.graph)
        return ", ".join(
            dictionary(
                {keys[o].key if slot == "gradient" else o: v for (s, o), v in results.items() if s == slot},
                table_of(slot) if table_of(slot) in tables else "",
            )
            for slot in self.signature.slots
        )

    def sizes(self, dims: set[str]) -> list[str]:
        """Lines that read free dimensions off the inputs."""
        sources = {d: self.pc.graph.dims[d] for d in sorted(dims)}
        inputs = self.pc.graph.inputs
        return [
            f"    {d} = inputs[{quoted(s.tensor)}].shape[{s.axis}]" for d, s in sources.items() if s.tensor in inputs
        ]

    def device(self, tensor: str) -> list[str]:
        """The line that says where new tensors go, if any are made."""
        return [f"    device = {tensor}.device"] if self.speller.device else []
