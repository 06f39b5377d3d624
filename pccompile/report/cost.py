"""What one training step of an algorithm costs against backpropagation: counted on programs, nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pccompile.algorithms import exact
from pccompile.analysis.cost import at, depth, products, size_in_bytes, traffic
from pccompile.backends.torch.code import quoted
from pccompile.backends.torch.keys import gradient_keys, table_of
from pccompile.backends.torch.lower import lower
from pccompile.backends.torch.optimise import optimise
from pccompile.backends.torch.statements import Carried, Function, Line, Loop, Lowered
from pccompile.diagnostics import CompileError, listing
from pccompile.frontends.imported import Imported
from pccompile.ir import Dim, Program, Ref, Type, map_refs, refs
from pccompile.ops import definition
from pccompile.pipeline import Compiled
from pccompile.report.figures import bars
from pccompile.report.tables import Page, Report, Table, as_json, number

UNTYPED = ("copy", "keep", "update")
"""Statements that make no value."""


@dataclass(frozen=True)
class Cost:
    """One step on one batch: the forward pass, inference and learning.

    flops: in matrix products and convolutions, a multiplication and an addition counting two. depth: the most vertices
    that wait for one another. messages, message_bytes: what crosses edges between vertices, values to children and
    errors to parents. kept_bytes: what the forward pass keeps for later. state_bytes: what inference keeps from step to
    step.
    """

    flops: int
    depth: int
    messages: int
    message_bytes: int
    kept_bytes: int
    state_bytes: int


MEANING = {
    "flops": "flops in products",
    "depth": "sequential depth",
    "messages": "messages",
    "message_bytes": "bytes of messages",
    "kept_bytes": "bytes kept from the forward pass",
    "state_bytes": "bytes of state",
}


@dataclass(frozen=True)
class CostReport(Report):
    """An algorithm and backpropagation, on the same batch."""

    algorithm: str
    own: Cost
    backprop: Cost
    lengths: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def page(self) -> Page:
        """A row for each kind of cost."""
        own, other = asdict(self.own), asdict(self.backprop)
        rows = tuple(
            (text, f"{own[k]:,}", f"{other[k]:,}", number(own[k] / other[k], 3) if other[k] else "–")
            for k, text in MEANING.items()
        )
        at_lengths = ", ".join(f"{k} = {n}" for k, n in self.lengths.items())
        title = f"cost of one step of {self.algorithm}{f', {at_lengths}' if at_lengths else ''}"
        return Page((title, *self.notes, Table(("", f">{self.algorithm}", ">backprop", ">ratio"), rows)))

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture of costs over backpropagation's; `path` is where to write it."""
        own, other = asdict(self.own), asdict(self.backprop)
        rows = {text: (own[k] / other[k],) for k, text in MEANING.items() if other[k]}
        return bars(f"one step of {self.algorithm}", rows, path, axis="times that of backpropagation")

    def json(self, indent: int | None = None) -> str:
        """All numbers as JSON."""
        return as_json({"cost": self.as_dict()}, indent)


def report_cost(compiled: Compiled, lengths: Mapping[str, int]) -> CostReport:
    """What a step costs where free dimensions have these lengths. Raises CompileError where data decides others."""
    program = compiled.program
    backprop = exact.schedule(program.pc, exact.Settings())
    counted = [Count(compiled.imported, p) for p in (program, backprop)]
    try:
        own, other = (c.cost(lengths) for c in counted)
    except KeyError as e:
        what = f"the length {e.args[0]} depends on data, so that costs cannot be counted before a run"
        raise CompileError(what, hint="count a model whose shapes its inputs decide") from None
    notes = list[str]()
    if counted[0].unknown:
        notes.append(f"not counted: products inside {listing(sorted(counted[0].unknown))}")
    return CostReport(program.algorithm, own, other, dict(lengths), tuple(notes))


class Count:
    """The costs of a program, as polynomials of its free dimensions."""

    def __init__(self, imported: Imported, program: Program) -> None:
        self.imported, self.program, self.pc = imported, program, program.pc
        self.lowered: Lowered = optimise(lower(program))
        self.types: dict[Ref, Type | None] = {}
        self.handed: Mapping[str, Type | None] = {}
        self.unknown: set[str] = set()
        self.outputs = [next(v.type for v in self.pc.vertices if v.name == name) for name in self.pc.clamped]

    def cost(self, lengths: Mapping[str, int]) -> Cost:
        """All of them at these lengths. Raises KeyError for a length that is not known."""
        low = self.lowered
        flops = self.flops(low.predict)
        kept = sum((size_in_bytes(self.types[r]) for r in low.context), 0)
        later = [low.sweep] if low.sweep.lines else [low.infer, low.learn]
        flops += sum((self.flops(f) for f in later), 0)
        state = sum((size_in_bytes(self.types[c.phi]) for f in later for c in _carried(f.lines)), 0)
        moved = traffic(self.program)
        return Cost(
            at(flops, lengths),
            depth(self.program),
            moved.forward + moved.backward,
            at(moved.bytes, lengths),
            at(kept, lengths),
            at(state, lengths),
        )

    def flops(self, f: Function) -> Dim:
        """The products of a function, those in loops as often as they run."""
        if f is self.lowered.learn:
            self._open(f)
        return self._lines(f.lines)

    def _lines(self, lines: list[Line], times: int = 1) -> Dim:
        """The products of lines that run so often; a statement that waits for its turn, as often as is left."""
        total: Dim = 0
        for line in lines:
            if isinstance(line, Loop):
                self.types |= {c.phi: self.types[c.start] for c in line.carried}
                turns = line.turns
                within = len(turns.rows) if turns.names else self.program.arguments[turns.times]
                assert isinstance(within, int)
                total += times * self._lines(line.body, within)
            elif line.op not in UNTYPED:
                result = self.types[line.target] = self._type(line.op, line.args)
                total += max(times - line.since, 0) * products(line.op, line.args, _known(self.types), result)
                if definition(line.op).helper and not definition(line.op).wiring:
                    self.unknown.add(line.op)
        return total

    def _type(self, op: str, args: Mapping[str, Any]) -> Type | None:
        match op:
            case "leaf":
                return self._leaf(args["table"], args["key"])
            case "given":
                return self._given(args["text"])
            case "alias":
                return self.types[args["of"]]
            case "clamp":
                return tuple(self.outputs)
            case "clamp_constants":
                return None
            case "pcc.when":
                return self.types[args["self"]]
        numbers = {k: map_refs(a, lambda r: r if self.types[r] is not None else 0.5) for k, a in args.items()}
        return self.imported.typer.infer(op, numbers, _known(self.types))

    def _leaf(self, table: str, key: str) -> Type:
        graph = self.pc.graph
        names = {"params": graph.params, "buffers": graph.buffers, "inputs": graph.inputs}[table]
        return next(t for n, t in names.items() if graph.origin.get(n, n) == key)

    def _given(self, text: str) -> Type | None:
        """The type of what a function is handed; None for numbers."""
        if text.startswith("output_errors["):
            return self.outputs[int(text[len("output_errors[") : -1])]
        return self.handed.get(text)

    def _open(self, f: Function) -> None:
        """What inference hands to learning has the types that it had there."""
        keys = gradient_keys(self.pc.graph)
        self.handed = {
            f"{table_of(slot)}[{quoted(keys[owner].key if slot == 'gradient' else owner)}]": self.types[r]
            for (slot, owner), r in self.lowered.infer.results.items()
        }


def _known(types: Mapping[Ref, Type | None]) -> Mapping[str, Type]:
    return types  # type: ignore[return-value]


def _carried(lines: list[Line]) -> Iterator[Carried]:
    """What loops hand from turn to turn; what they compute anew in each, once it moves, is nothing that they keep."""
    for line in lines:
        if isinstance(line, Loop):
            read = {r for x in line.body for r in (x.reads if isinstance(x, Loop) else refs(x.args.values()))}
            yield from (c for c in line.carried if c.phi in read)
            yield from _carried(line.body)
