"""A function's statements as Python lines.

One line an operation; a view that is read once is written where it is read. Values are freed when they have been read
for the last time, and a sum is added up in place where nothing else can see the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from pccompile.backends.torch.accumulation import onto
from pccompile.backends.torch.context import arguments
from pccompile.backends.torch.in_place import METHODS, OVERWRITING
from pccompile.backends.torch.layout import STEP, WIDTH, deleted, folded, listed, recorded
from pccompile.backends.torch.memories import Memories
from pccompile.backends.torch.nesting import Nesting, last_reads
from pccompile.backends.torch.spell import SHAPES, Speller, atom, quoted, result_count
from pccompile.backends.torch.statements import Block, Function, Label, Line, Loop, Role, Statement, fresh, sole
from pccompile.ir import Ref
from pccompile.ir.names import Namer

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
        self.keys = keys
        self.adds = not fixed
        self.owned: Collection[Ref] = ()  # what the function is given whose memory it may write to
        self.stored: Mapping[Ref, str] = {}  # what values are called that have a place in a table
        self.f, self.labels, self.speller, self.heading = function, labels, speller, heading
        self.names = dict(names)
        self.fixed = fixed
        self.namer = Namer((*reserved, *names.values(), *fixed.values()))
        self.returned = Counter(function.results.values())
        self.kept = {*self.returned, *fixed}
        self.text: list[str] = []
        self.made = {s.target: s for s in function.statements()}
        self.readers: dict[Ref, list[Statement | None]] = {}
        self.block_of: dict[Ref, int] = {}
        self.scan(function.lines, 0)
        self.owner = {name: value for value, name in self.names.items()}
        self.nested: set[Ref] = set()
        self.inlined: dict[Ref, str] = {}
        self.unpacked: set[Ref] = set()
        self.came_from: dict[Ref, tuple[Block, Ref]] = {}
        self.freed = set(self.names)  # what the function is given and frees
        self.places: Mapping[Ref, int] = {}  # where in the context values stand that calls read
        self.together: Mapping[Ref, tuple[str, Sequence[Ref]]] = {}  # results of calls that are one list
        self.kept_by_caller = False  # and yet not behind calls
        self.called = False  # whether the last line is a call of a block
        self.memories = Memories(function.lines, self.namer, speller)
        self.vertex = ""
        self.since = 0

    def scan(self, lines: Sequence[Line], block: int) -> None:
        """Note who reads what, and in which block each value is made."""
        for line in lines:
            if isinstance(line, Statement):
                self.block_of[line.target] = block
                for r in line.reads:
                    self.readers.setdefault(r, []).append(line)
                continue
            for c in line.carried:
                self.names[c.phi] = self.namer(self.labels[c.phi].text)
                for r in (c.start, c.next):
                    self.readers.setdefault(r, []).append(None)
            for r in line.shown:
                self.readers.setdefault(r, []).append(None)
            self.scan(line.body, id(line))

    def run(self, late_dims: Mapping[Ref, Sequence[tuple[str, int]]]) -> list[str]:
        """The body, without the return statement. late_dims: lengths to read off a value once it is there."""
        self.late_dims = late_dims
        self.nested = Nesting(self.f, self.labels, self.readers, self.block_of, {*self.kept, *late_dims}).nested()
        self.block(self.f.lines, 1, self.kept)
        return self.text

    def owns(self, value: Ref) -> bool:
        """Whether a result has memory that no other result and no argument has."""
        return sole(value, self.made, {r: len(readers) for r, readers in self.readers.items()}, self.returned)

    def spell(self, value: Ref) -> str:
        """A value where it is read."""
        return self.inlined[value] if value in self.inlined else self.names[value]

    def block(self, lines: Sequence[Line], depth: int, kept: set[Ref]) -> None:
        """Print `lines`, freeing each value when it has been read for the last time."""
        last = last_reads(lines, self.nested)
        own = {s.target for s in lines if isinstance(s, Statement)} | (self.freed if depth == 1 else set())
        ending: dict[int, list[Ref]] = {}
        for r, i in last.items():
            ending.setdefault(i, []).append(r)
        dead: list[Ref] = []
        for i, line in enumerate(lines):
            self.free(dead, depth + bool(self.since))
            if isinstance(line, Loop):
                self.loop(line, depth)
            else:
                self.statement(line, i, depth, last, kept)
            dead = [r for r in ending.get(i, ()) if r in own and r not in kept and i + 1 < len(lines)]

    def statement(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> None:
        """Print a statement, unless it is written where it is read."""
        if s.target in self.unpacked:
            self.measure(s.target, depth)
            return
        if s.op == "update":
            gradients = zip(s.args["paths"], map(self.spell, s.args["gradients"]), strict=True)
            self.comment("", depth)
            self.text.append("")
            self.line(depth, f"update({{{', '.join(f'{quoted(k)}: {v}' for k, v in gradients)}}})")
            return
        if s.op in ("keep", "copy"):
            entry, value = self.entry(s.args["table"], s.args["key"]), self.spell(s.args["of"])
            self.line(depth, f"{entry} = {value}" if s.op == "keep" else f"{entry}.copy_({value})")
            return
        if s.block:
            self.call(s, s.block, depth, {r for r in s.reads if last[r] == i and r not in kept})
            return
        if s.target in self.nested:
            self.inlined[s.target] = self.expression(s)
            return
        depth = self.turn(s, depth)
        if s.into:
            self.write_over(s, s.into, depth)
        elif not s.keeps and self.unpack(s, depth):
            return
        elif s.keeps or not (self.in_place(s, i, depth, last, kept) or self.overwrites(s, i, depth, last, kept)):
            expression = "" if s.reuses else self.expression(s)
            name = self.own_name(s.target)
            for text in self.memories.assignment(s, name, self.spell) if s.reuses else [f"{name} = {expression}"]:
                self.line(depth, text)
        self.measure(s.target, depth)

    def measure(self, value: Ref, depth: int) -> None:
        """Print the lengths that are read off a value."""
        for name, axis in self.late_dims.get(value, ()):
            self.line(depth, f"{name} = {self.names[value]}.shape[{axis}]")

    def entry(self, table: str, key: str) -> str:
        """An entry of a table."""
        return f"{table}[{self.keys.get((table, key)) or quoted(key)}]"

    def call(self, s: Statement, block: Block, depth: int, dying: Collection[Ref]) -> None:
        """Print the call of a block, the first of several behind an empty line. dying: what nothing reads again."""
        if not self.called and self.text and self.text[-1]:
            self.text.append("")
        self.vertex = ""
        expression = f"{block.name}({', '.join(arguments(s, block, self.spell, self.places))})"
        parts = [p.target for p in self.readers.get(s.target, ()) if p is not None] if len(block.returned) > 1 else []
        for r, own in zip(parts or [s.target], block.returned, strict=False):
            self.hand_down(r, own, block, dying)
        if len(block.returned) > 1:
            self.several(s, expression, len(block.returned), depth)
        else:
            self.line(depth, f"{self.own_name(s.target)} = {expression}" if block.returned else expression)
        self.called = True
        self.measure(s.target, depth)

    def hand_down(self, value: Ref, own: Ref, block: Block, dying: Collection[Ref]) -> None:
        """Call what comes back from one call and goes to the next by one name, which is what the block calls it."""
        before = next((r for r in dying if self.came_from.get(r) == (block, own)), None)
        self.came_from[value] = block, own
        if value in self.names or value in self.fixed:
            return
        if before is not None and self.owner[self.names[before]] == before:
            self.names[value] = self.names[before]
        elif [r for r in self.readers.get(value, ()) if r is None or r.block is not block] == []:
            self.names[value] = self.namer(block.labels[own].text)

    def turn(self, s: Statement, depth: int) -> int:
        """Open the condition of a statement of a loop that waits for its turn; the depth that it is printed at."""
        if s.keeps and self.own_name(s.target) != self.names[s.keeps]:
            self.since = 0
            self.line(depth, f"{self.names[s.target]} = {self.names[s.keeps]}")
        opens = s.since != self.since
        self.comment(s.vertex, depth + bool(s.since and not opens))
        if s.since and opens:
            self.line(depth, f"if turn >= {s.since}:")
        self.since = s.since
        return depth + bool(s.since)

    def write_over(self, s: Statement, operand: Ref, depth: int) -> None:
        """Print a statement whose result takes the place of an operand."""
        name = self.names[s.target] = self.names[operand]
        self.owner[name] = s.target
        arguments = self.speller.arguments(s.op, s.args, self.spell)[1:]
        self.line(depth, f"{name}.{METHODS[s.op]}({', '.join(arguments)})")

    def own_name(self, value: Ref) -> str:
        """What a value is called from here on; the first term of a sum is called what the sum is."""
        if value not in self.names:
            sum_ = self.becomes(value)
            self.names[value] = self.fixed.get(value) or self.stored.get(sum_) or self.namer(self.labels[sum_].text)
        self.owner[self.names[value]] = value
        return self.names[value]

    def becomes(self, value: Ref) -> Ref:
        """What a value is once all is added to it that is added to its memory."""
        while True:
            readers = (r for r in self.readers.get(value, []) if r is not None and self.accumulates(r, value))
            adding = next(readers, None)
            if adding is None:
                return value
            value = adding.target

    def expression(self, s: Statement) -> str:
        """What a statement computes."""
        match s.op:
            case "leaf":
                return self.entry(s.args["table"], s.args["key"]) + (".clone()" if s.args.get("clone") else "")
            case "given":
                return self.entry(s.args["table"], s.args["key"]) if "table" in s.args else str(s.args["text"])
            case "alias":
                return self.spell(s.args["of"])
            case "clamp" | "clamp_constants":
                outputs = ", ".join(self.spell(o) for o in s.args["outputs"])
                constants = f", {self.spell(s.args['constants'])}" if "constants" in s.args else ""
                name = "clamp_errors" if s.op == "clamp" else s.op
                return f"{name}(({outputs},), targets{constants})"
        if self.labels[s.target].role is Role.GRADIENT and s.op in ("aten.neg.default", "aten.mul.Tensor"):
            source = s.args["self"]
            if source in self.inlined and fresh(self.made[source], self.made):
                call = "neg_()" if s.op == "aten.neg.default" else f"mul_({s.args['other']!r})"
                return f"{atom(self.inlined[source])}.{call}"
        if s.over and s.op == "aten.mul.Tensor" and self.views_its_own(s):
            return f"{atom(self.inlined[s.args['self']])}.mul_({self.speller.arg(s.args['other'], self.spell)})"
        return self.speller.call(s.op, s.args, self.spell)

    def views_its_own(self, s: Statement) -> bool:
        """Whether a statement reads another shape of memory that nothing else reads."""
        reader, source = s, self.made.get(s.args["self"])
        while source is not None and source.target in self.inlined and source.op in SHAPES:
            reader, source = source, self.made.get(source.args["self"])
        return s.even and reader is not s and source is not None and self.alone(source.target, reader)

    def in_place(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> bool:
        """Print an addition as an accumulation, or a scaling in place, where the operand's memory is ours alone."""
        operand = s.args.get("self")
        if not isinstance(operand, Ref) or operand in self.inlined or operand in kept or last[operand] != i:
            return False
        if s.target in self.names:
            return False
        if self.accumulates(s, operand):
            name = self.names[s.target] = self.names[operand]
            self.owner[name] = s.target
            other = self.made.get(s.args["other"]) if s.args.get("other") in self.inlined else None
            self.line(depth, onto(name, s, lambda arg: self.speller.arg(arg, self.spell), other))
            return True
        scales = s.op == "aten.neg.default" or (s.op == "aten.mul.Tensor" and isinstance(s.args["other"], float))
        if scales and self.labels[s.target].role is Role.GRADIENT and self.alone(operand, s):
            call = "neg_()" if s.op == "aten.neg.default" else f"mul_({s.args['other']!r})"
            self.line(depth, f"{self.own_name(s.target)} = {self.names[operand]}.{call}")
            return True
        return False

    def accumulates(self, s: Statement, operand: Ref) -> bool:
        """Whether a statement works on the memory of its operand: it adds to it, or has no other use for it."""
        adds = s.op == "aten.add.Tensor" and isinstance(s.args["alpha"], int | float)
        return (
            (s.over or (adds and isinstance(s.args["other"], Ref)))
            and s.even
            and s.args["self"] == operand
            and s.target not in self.names
            and operand not in self.kept
            and self.alone(operand, s)
        )

    def alone(self, operand: Ref, reader: Statement) -> bool:
        """Whether an operand's memory is its own, read by one statement in the block that made it."""
        here = self.block_of.get(operand) == self.block_of[reader.target] and self.adds
        single = self.is_own(operand) and len(self.readers[operand]) == 1
        return here and single and self.labels[operand].role not in (Role.PREDICTION, Role.VALUE)

    def is_own(self, value: Ref) -> bool:
        """Whether a value has memory of its own, or is given with its memory."""
        source = self.made.get(value)
        return value in self.owned or (source is not None and fresh(source, self.made))

    def overwrites(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> bool:
        """Print a function in place, where nothing else will read its argument, a prediction and so floating."""
        operand = s.args.get("self")
        if s.op not in OVERWRITING or operand not in self.names or operand in kept or last[operand] != i:
            return False
        if self.labels[operand].role is not Role.PREDICTION:
            return False
        alone = len(self.readers[operand]) == 1 and self.block_of.get(operand) == self.block_of[s.target]
        if not alone or not self.is_own(operand):
            return False
        self.line(depth, f"{self.own_name(s.target)} = {OVERWRITING[s.op]}({self.names[operand]})")
        return True

    def unpack(self, s: Statement, depth: int) -> bool:
        """Print an operation with several results, where more than one is read, as one assignment to all of them."""
        count = result_count(s.op)
        parts = [p for p in self.readers.get(s.target, ()) if p is not None and p.op == "getitem"]
        measured = s.target in self.kept or any(p.target in self.late_dims for p in parts)
        here = all(self.block_of[p.target] == self.block_of[s.target] for p in parts)
        if len(parts) < 2 or count is None or not here or measured or len(self.readers[s.target]) != len(parts):
            return False
        if any(p.keeps and self.own_name(p.target) != self.names[p.keeps] for p in parts):
            return False
        self.several(s, self.expression(s), count, depth)
        return True

    def several(self, s: Statement, expression: str, count: int, depth: int) -> None:
        """Print an assignment to all results of an expression that are read."""
        names = ["_"] * count
        for p in self.readers[s.target]:
            if p is not None:
                names[p.args["index"]] = self.own_name(p.target)
                self.unpacked.add(p.target)
        if s.target in self.together:
            name, members = self.together[s.target]
            names[-len(members) :] = [f"*{name}"]
        targets = ", ".join(names)
        room = WIDTH - len(STEP * depth) - len(expression.partition("(")[0]) - len(" = (")
        targets = targets if len(targets) <= room else listed(names, STEP * depth, 0)
        self.line(depth, f"{targets} = {expression}")

    def loop(self, loop: Loop, depth: int) -> None:
        """Print a loop; a carried value keeps its name where nothing reads the old one after the new one is made."""
        for c in loop.carried:
            self.line(depth, f"{self.names[c.phi]} = {self.spell(c.start)}{'.clone()' if c.copied else ''}")
        waits = any(isinstance(s, Statement) and s.since for s in loop.body)
        counter = "done" if loop.stop else "turn" if waits else "_"
        with self.memories.of_loop(self.text, depth):
            for text in loop.turns.head(counter):
                self.line(depth, text)
            late = []
            for c in loop.carried:
                places = (i for i, s in enumerate(loop.body) if isinstance(s, Statement) and s.target == c.next)
                at = next(places, None)
                late_reads = at is None or any(c.phi in s.reads for s in loop.body[at + 1 :]) or c.phi in loop.shown
                if not late_reads and c.next not in self.names:
                    self.names[c.next] = self.names[c.phi]
                    self.owner[self.names[c.phi]] = c.next
                else:
                    late.append(c)
            length = len(self.text)
            read_late = {c.next for c in loop.carried} | set(loop.shown)
            self.since = 0
            self.block(loop.body, depth + 1, self.kept | read_late)
            self.since = 0
            if loop.stop:
                self.line(depth + 1, f"calm = {self.speller.settled(loop.stop.pairs, loop.stop.below, self.spell)}")
            for c in late:
                self.line(depth + 1, f"{self.names[c.phi]} = {self.spell(c.next)}")
            if loop.record:
                shown = {key: self.spell(value) for key, value in loop.record.items()}
                self.line(depth + 1, recorded(shown))
            if loop.stop:
                self.line(depth + 1, f"if calm and done + 1 >= {loop.stop.least}:")
                self.line(depth + 2, "break")
            if len(self.text) == length:
                self.line(depth + 1, "pass")
        self.vertex = ""

    def comment(self, vertex: str, depth: int) -> None:
        """Print the heading of a vertex where one begins."""
        heading = self.heading(vertex) if vertex and vertex != self.vertex else ""
        if heading:
            self.text.append("")
            self.line(depth, f"# {heading}")
        self.vertex = vertex

    def free(self, dead: Sequence[Ref], depth: int) -> None:
        """Write `del` for values that nothing reads any more."""
        if self.called and self.kept_by_caller:
            dead = [r for r in dead if r not in self.freed]
        names = [n for r in dead if (n := self.names.get(r, "")).isidentifier() and self.owner[n] == r]
        names = [name for name in names if name not in self.memories.names]
        if names:
            self.line(depth, deleted(dict.fromkeys(names), depth))

    def line(self, depth: int, text: str) -> None:
        """Print one line, over several where it is too long."""
        self.called = False
        *first, last = (STEP * depth + text).split("\n")
        self.text += [*first, *folded(last)]
