"""A function's statements as Python lines.

One line an operation; a view that is read once is written where it is read. Values are freed when they have been read
for the last time, and a sum is added up in place where nothing else can see the memory.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from pccompile.backends.torch.code import Expr, call, literal, method, name, text
from pccompile.backends.torch.context import arguments
from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.expression_text import Expressions
from pccompile.backends.torch.layout import STEP, WIDTH, deleted, folded, listed, recorded, table
from pccompile.backends.torch.nesting import Nesting, last_reads
from pccompile.backends.torch.overwriting import Overwriting, Written
from pccompile.backends.torch.source_map import Ownership
from pccompile.backends.torch.spell import Spelled, Speller, result_count
from pccompile.backends.torch.statements import Block, Function, Label, Line, Loop, Statement, loops_of
from pccompile.backends.torch.value_names import ValueNames
from pccompile.ir import Ref
from pccompile.ir.names import Namer
from pccompile.ops import definition

Heading = Callable[[str], str]


class Printer:
    """Prints one function.

    names: what values that the function is given are called. fixed: what values that it must keep are to be called.
    heading: the comment above a vertex. keys: how entries of tables are written whose key differs from call to call.
    """

    def __init__(
        self,
        function: Function,
        labels: Mapping[Ref, Label],
        names: Mapping[Ref, str],
        fixed: Mapping[Ref, str],
        speller: Speller,
        heading: Heading,
        reserved: Iterable[str],
        keys: Mapping[tuple[str, str], str] = MappingProxyType({}),
    ) -> None:
        self.flow = Dataflow(function, labels, fixed)
        self.flow.adds = not fixed
        self.names = ValueNames(self.flow, names, fixed, reserved)
        self.expressions = Expressions(self.flow, self.names, speller, keys)
        self.overwriting = Overwriting(self.flow, self.names, speller)
        self.speller, self.heading = speller, heading
        self.text: list[str] = []
        self.nested, self.unpacked = set[Ref](), set[Ref]()
        self.came_from: dict[Ref, tuple[Block, Ref]] = {}
        self.freed = set(self.names)  # what the function is given and frees
        self.places: Mapping[Ref, int] = {}  # where in the context values stand that calls read
        self.together: Mapping[Ref, tuple[str, Sequence[Ref]]] = {}  # results of calls that are one list
        self.kept_by_caller = False  # and yet not behind calls
        self.called = False  # whether the last line is a call of a block
        self.memories = Memories(function.lines, self.names.namer, speller)
        self.ownership = Ownership(self.flow.made)
        self.closures = any(s.each for s in function.statements())
        self.vertex = ""
        self.since = 0

    def run(self, late_dims: Mapping[Ref, Sequence[tuple[str, int]]]) -> list[str]:
        """The body, without the return statement. late_dims: lengths to read off a value once it is there."""
        self.late_dims = late_dims
        self.nested = Nesting(self.flow, {*self.flow.kept, *late_dims}).nested()
        self.block(self.flow.f.lines, 1, self.flow.kept)
        return self.text

    def block(self, lines: Sequence[Line], depth: int, kept: set[Ref]) -> None:
        """Print `lines`, freeing each value when it has been read for the last time."""
        last = last_reads(lines, self.nested)
        own = {s.target for s in lines if isinstance(s, Statement)} | (self.freed if depth == 1 else set())
        ending: dict[int, list[Ref]] = {}
        for r, i in last.items():
            ending.setdefault(i, []).append(r)
        dead: list[Ref] = []
        for i, line in enumerate(lines):
            self.ownership.nobody()
            self.free(dead, depth + bool(self.since))
            if isinstance(line, Loop):
                self.loop(line, depth)
            else:
                self.statement(line, i, depth, last, kept)
            dead = [r for r in ending.get(i, ()) if r in own and r not in kept and i + 1 < len(lines)]

    def statement(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> None:
        """Print a statement, unless it is written where it is read."""
        self.ownership.begin(s)
        if s.target in self.unpacked:
            self.measure(s.target, depth)
            return
        if s.op in ("update", "exchange"):
            self.comment("", depth)
            self.text.append("")
            heard = f"{self.names.own(s.target)} = " if self.flow.readers.get(s.target) else ""
            self.line(depth, heard, outward(s, self.names.spelled))
            return
        if s.op in ("keep", "copy"):
            self.since = 0
            entry, value = self.expressions.entry(s.args["table"], s.args["key"]), self.names.spelled(s.args["of"])
            keeps = s.op == "keep"
            self.line(depth, f"{entry} = " if keeps else "", value if keeps else method(name(entry), "copy_", value))
            return
        if s.block:
            self.call(s, s.block, depth, {r for r in s.reads if last[r] == i and r not in kept})
            return
        if s.target in self.nested:
            self.names.inlined[s.target] = self.expressions.of(s)
            self.ownership.inline(s)
            return
        depth = self.turn(s, depth)
        if s.into:
            self.line(depth, *self.overwriting.onto_operand(s, s.into))
        elif not s.keeps and not s.each and self.unpack(s, depth):
            return
        elif not s.keeps and (written := self.overwriting.line(s, lambda r: last[r] == i and r not in kept)):
            self.line(depth, *written)
        elif s.reuses:
            for head, value in self.memories.assignment(s, self.names.own(s.target), self.names.spelled):
                self.line(depth, head, value)
        else:
            expression = self.expressions.of(s)
            self.line(depth, f"{self.names.own(s.target)} = ", expression)
        self.measure(s.target, depth)

    def measure(self, value: Ref, depth: int) -> None:
        """Print the lengths that are read off a value."""
        for dim, axis in self.late_dims.get(value, ()):
            self.line(depth, f"{dim} = {self.names[value]}.shape[{axis}]")

    def call(self, s: Statement, block: Block, depth: int, dying: Collection[Ref]) -> None:
        """Print the call of a block, the first of several behind an empty line. dying: what nothing reads again."""
        if not self.called and self.text and self.text[-1]:
            self.text.append("")
        self.vertex, self.since = "", 0
        expression = call(block.name, *arguments(s, block, self.names.spelled, self.places))
        parts = (
            [p.target for p in self.flow.readers.get(s.target, ()) if p is not None] if len(block.returned) > 1 else []
        )
        for r, own in zip(parts or [s.target], block.returned, strict=False):
            self.hand_down(r, own, block, dying)
        if len(block.returned) > 1:
            self.several(s, expression, len(block.returned), depth)
        else:
            self.line(depth, f"{self.names.own(s.target)} = " if block.returned else "", expression)
        self.called = True
        self.measure(s.target, depth)

    def hand_down(self, value: Ref, own: Ref, block: Block, dying: Collection[Ref]) -> None:
        """Call what comes back from one call and goes to the next by one name, which is what the block calls it."""
        before = next((r for r in dying if self.came_from.get(r) == (block, own)), None)
        self.came_from[value] = block, own
        if value in self.names or value in self.names.fixed:
            return
        if before is not None and self.names.owner[self.names[before]] == before:
            self.names[value] = self.names[before]
        elif [r for r in self.flow.readers.get(value, ()) if r is None or r.block is not block] == []:
            self.names[value] = self.names.namer(block.labels[own].text)

    def turn(self, s: Statement, depth: int) -> int:
        """Open the condition of a statement of a loop that waits for its turn; the depth that it is printed at."""
        if s.keeps and self.names.own(s.target) != self.names[s.keeps]:
            self.since = 0
            self.line(depth, f"{self.names[s.target]} = {self.names[s.keeps]}")
        opens = s.since != self.since
        self.comment(s.vertex, depth + bool(s.since and not opens))
        if s.since and opens:
            self.since = 0
            self.line(depth, f"if turn >= {s.since}:")
            self.ownership.condition = tuple(self.text[-1:])
        self.since = s.since
        return depth + bool(s.since)

    def unpack(self, s: Statement, depth: int) -> bool:
        """Print an operation with several results, where more than one is read, as one assignment to all of them."""
        count = result_count(s.op)
        parts = [p for p in self.flow.readers.get(s.target, ()) if p is not None and p.op == "getitem"]
        measured = s.target in self.flow.kept or any(p.target in self.late_dims for p in parts)
        here = all(self.flow.block_of[p.target] == self.flow.block_of[s.target] for p in parts)
        if len(parts) < 2 or count is None or not here or measured or len(self.flow.readers[s.target]) != len(parts):
            return False
        if any(p.keeps and self.names.own(p.target) != self.names[p.keeps] for p in parts):
            return False
        self.several(s, self.expressions.of(s), count, depth)
        return True

    def several(self, s: Statement, expression: Expr, count: int, depth: int) -> None:
        """Print an assignment to all results of an expression that are read."""
        names = ["_"] * count
        for p in self.flow.readers[s.target]:
            if p is not None:
                names[p.args["index"]] = self.names.own(p.target)
                self.unpacked.add(p.target)
        if s.target in self.together:
            whole, members = self.together[s.target]
            names[-len(members) :] = [f"*{whole}"] if len(members) < count else [whole]
        targets = ", ".join(names)
        called = expression.func if isinstance(expression, ast.Call) else expression
        room = WIDTH - len(STEP * depth) - len(text(called)) - len(" = (")
        targets = targets if len(targets) <= room else listed(names, STEP * depth, 0)
        self.line(depth, f"{targets} = ", expression)

    def loop(self, loop: Loop, depth: int) -> None:
        """Print a loop; a carried value keeps its name where nothing reads the old one after the new one is made."""
        for c in loop.carried:
            self.ownership.carry(c)
            start = self.names.spelled(c.start)
            self.line(depth, f"{self.names[c.phi]} = ", method(start, "clone") if c.copied else start)
        waits = any(isinstance(s, Statement) and s.since for s in loop.body)
        counter = "done" if loop.stop else "turn" if waits else "_"
        with self.memories.of_loop(self.text, depth):
            self.ownership.nobody()
            head, outside = len(self.text), self.ownership.loops
            for opening in loop.turns.head(counter):
                self.line(depth, opening)
            self.ownership.loops = (*outside, *self.text[head:])
            late = []
            for c in loop.carried:
                places = (i for i, s in enumerate(loop.body) if isinstance(s, Statement) and s.target == c.next)
                at = next(places, None)
                late_reads = at is None or any(c.phi in s.reads for s in loop.body[at + 1 :]) or c.phi in loop.shown
                if not late_reads and c.next not in self.names:
                    self.names.take_over(c.next, c.phi)
                else:
                    late.append(c)
            length = len(self.text)
            read_late = {c.next for c in loop.carried} | set(loop.shown)
            self.since = 0
            self.block(loop.body, depth + 1, self.flow.kept | read_late)
            self.since = 0
            self.ownership.nobody()
            if loop.stop:
                self.line(depth + 1, "calm = ", self.speller.settled(loop.stop, self.names.spelled))
            for c in late:
                self.ownership.carry(c)
                self.line(depth + 1, f"{self.names[c.phi]} = ", self.names.spelled(c.next))
            self.ownership.nobody()
            if loop.record:
                self.line(depth + 1, "", recorded({k: self.names.spelled(v) for k, v in loop.record.items()}))
            if loop.stop:
                self.line(depth + 1, f"if calm and done + 1 >= {loop.stop.least}:")
                self.line(depth + 2, "break")
            if len(self.text) == length:
                self.line(depth + 1, "pass")
            self.ownership.loops = outside
        self.vertex = ""

    def comment(self, vertex: str, depth: int) -> None:
        """Print the heading of a vertex where one begins."""
        heading = self.heading(vertex) if vertex and vertex != self.vertex else ""
        if heading:
            self.text.append("")
            owners, self.ownership.owners = self.ownership.owners, ()
            self.line(depth, f"# {heading}")
            self.ownership.owners = owners
        self.vertex = vertex

    def free(self, dead: Sequence[Ref], depth: int) -> None:
        """Let go of values that nothing reads any more."""
        if self.called and self.kept_by_caller:
            dead = [r for r in dead if r not in self.freed]
        names = [n for r in dead if (n := self.names.get(r, "")).isidentifier() and self.names.owner[n] == r]
        names = [n for n in names if n not in self.memories.names]
        if names:
            self.called, lines = False, released(dict.fromkeys(names), depth, self.closures)
            self.text += self.ownership.lines(lines, bool(self.since))

    def line(self, depth: int, head: str, value: Expr | None = None) -> None:
        """Print one line, `head` and behind it `value`, over several where that is too long."""
        self.called = False
        *first, last = (STEP * depth + head).split("\n")
        rows = [last] if value is None else folded(last, value)
        self.text += self.ownership.lines([*first, *rows], bool(self.since))


class Memories:
    """The memories of the loop under way, by name."""

    def __init__(self, lines: Iterable[Line], namer: Namer, speller: Speller) -> None:
        self.namer, self.speller = namer, speller
        self.carried = {c.next for loop in loops_of(lines) for c in loop.carried}
        self.names: list[str] = []

    def assignment(self, s: Statement, own: str, spelled: Spelled) -> list[Written]:
        """The lines of a statement that reuses memory. What lasts beyond its turn has another name than its memory."""
        if s.reuses is not None and s.reuses != s.target:
            return [(f"{own} = ", call(f"torch.{definition(s.op).in_place}", spelled(s.reuses)))]
        lasts = s.target in self.carried or bool(s.keeps)
        memory = self.namer(f"memory_{own}") if lasts else own
        self.names.append(memory)
        line = f"{own} = ", self.speller.written(s.op, s.args, spelled, memory)
        return [line, (f"{memory} = ", name(own))] if lasts else [line]

    @contextmanager
    def of_loop(self, text: list[str], depth: int) -> Iterator[None]:
        """Within, a loop is printed: what goes before and behind it is added to `text`."""
        head, outside = len(text), self.names
        self.names = []
        yield
        text[head:head] = nothing(self.names, STEP * depth)
        if self.names:
            text += deleted(self.names, STEP * depth)
        self.names = outside


def outward(s: Statement, spelled: Spelled) -> Expr:
    """The call of a function that a file is given: what updates the parameters, or the neighbours."""
    if s.op == "update":
        return call("update", table(dict(zip(s.args["paths"], map(spelled, s.args["gradients"]), strict=True))))
    return method(name("neighbours"), "exchange", literal(s.args["number"]), *map(spelled, s.args["told"]))


def released(names: Iterable[str], depth: int, closures: bool) -> list[str]:
    """Lines that let go of values. closures: comprehensions read some, of which torch.compile takes no `del`."""
    return nothing(names, STEP * depth) if closures else deleted(names, STEP * depth)


def nothing(names: Iterable[str], indent: str) -> list[str]:
    """Lines that give each of `names` None, as many in one as have room."""
    lines: list[str] = []
    for called in names:
        if lines and len(lines[-1]) + len(f" = {called}") <= WIDTH:
            lines[-1] = f"{lines[-1].removesuffix('None')}{called} = None"
        else:
            lines.append(f"{indent}{called} = None")
    return lines
