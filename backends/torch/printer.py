"""A function's statements as Python lines.

One line an operation; a view that is read once is written where it is read. Values are freed when they have been read
for the last time, and a sum is added up in place where nothing else can see the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from pccompile.backends.torch.in_place import METHODS, OVERWRITING
from pccompile.backends.torch.layout import STEP, WIDTH, folded, listed, recorded
from pccompile.backends.torch.nesting import Nesting
from pccompile.backends.torch.spell import SETTLED, SHAPES, Speller, atom, quoted, result_count
from pccompile.backends.torch.statements import Function, Label, Line, Loop, Role, Statement, Stop, fresh
from pccompile.ir import Ref
from pccompile.ir.names import Namer
from pccompile.ops import OPS

Heading = Callable[[str], str]


class Printer:
    """Prints one function.

    names: what values that the function is given are called. fixed: what values that it must keep are to be called.
    heading: the comment above a vertex.
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
    ) -> None:
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
        """Whether a result has memory that no other result and no argument has: optimizers write into gradients."""
        alone = self.returned[value] == 1 and value not in self.readers
        source = self.made.get(value)
        while source and source.op in OPS and OPS[source.op].wiring and source.op != "aten.expand.default":
            base = source.args.get("self")
            alone = alone and isinstance(base, Ref) and len(self.readers[base]) == 1
            source = self.made.get(Ref(base)) if alone else None
        return alone and source is not None and fresh(source, self.made)

    def spell(self, value: Ref) -> str:
        """A value where it is read."""
        return self.inlined[value] if value in self.inlined else self.names[value]

    def block(self, lines: Sequence[Line], depth: int, kept: set[Ref]) -> None:
        """Print `lines`, freeing each value when it has been read for the last time."""
        last = self.last_reads(lines)
        own = {s.target for s in lines if isinstance(s, Statement)} | (set(self.names) if depth == 1 else set())
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

    def last_reads(self, lines: Sequence[Line]) -> dict[Ref, int]:
        """Where each value is read for the last time; an inlined value is read where its reader is."""
        found: dict[Ref, int] = {}
        for i, line in enumerate(lines):
            for r in line.reads:
                found[r] = i
            if isinstance(line, Statement):
                found.setdefault(line.target, i)
        for i in reversed(range(len(lines))):
            line = lines[i]
            if isinstance(line, Statement) and line.target in self.nested:
                for r in line.reads:
                    found[r] = max(found[r], found[line.target])
        return found

    def statement(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> None:
        """Print a statement, unless it is written where it is read."""
        if s.target in self.unpacked:
            return
        if s.op == "keep":
            self.line(depth, f"{s.args['table']}[{quoted(s.args['key'])}] = {self.spell(s.args['of'])}")
            return
        if s.op == "update":
            gradients = zip(s.args["paths"], map(self.spell, s.args["gradients"]), strict=True)
            self.comment("", depth)
            self.text.append("")
            self.line(depth, f"update({{{', '.join(f'{quoted(k)}: {v}' for k, v in gradients)}}})")
            return
        if s.op == "copy":
            self.line(depth, f"{s.args['table']}[{quoted(s.args['key'])}].copy_({self.spell(s.args['of'])})")
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
            expression = self.expression(s)
            self.line(depth, f"{self.own_name(s.target)} = {expression}")
        for name, axis in self.late_dims.get(s.target, ()):
            self.line(depth, f"{name} = {self.names[s.target]}.shape[{axis}]")

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
            self.names[value] = self.fixed.get(value) or self.namer(self.labels[self.becomes(value)].text)
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
                return f"{s.args['table']}[{quoted(s.args['key'])}]" + (".clone()" if s.args.get("clone") else "")
            case "given":
                return str(s.args["text"])
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
            self.line(depth, self.onto(name, s))
            return True
        scales = s.op == "aten.neg.default" or (s.op == "aten.mul.Tensor" and isinstance(s.args["other"], float))
        if scales and self.labels[s.target].role is Role.GRADIENT and self.alone(operand, s):
            call = "neg_()" if s.op == "aten.neg.default" else f"mul_({s.args['other']!r})"
            self.line(depth, f"{self.own_name(s.target)} = {self.names[operand]}.{call}")
            return True
        return False

    def onto(self, name: str, s: Statement) -> str:
        """The line that adds to the memory of an operand, or scales it."""
        if s.op == "aten.lerp.Scalar":
            return f"{name}.lerp_({self.spell(s.args['end'])}, {s.args['weight']!r})"
        other, made = self.speller.arg(s.args["other"], self.spell), self.made.get(s.args["other"])
        if s.op == "aten.mul.Tensor":
            return f"{name} *= {other}"
        further = "" if s.args["alpha"] == 1 else f", alpha={s.args['alpha']!r}"
        if made and s.args["other"] in self.inlined and made.op == "aten.mm.default":
            return f"{name}.addmm_({self.spell(made.args['self'])}, {self.spell(made.args['mat2'])}{further})"
        return f"{name}.add_({other}{further})" if further else f"{name} += {other}"

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
        source = self.made.get(operand)
        here = self.block_of.get(operand) == self.block_of[reader.target] and not self.fixed
        single = source is not None and fresh(source, self.made) and len(self.readers[operand]) == 1
        return here and single and self.labels[operand].role not in (Role.PREDICTION, Role.VALUE)

    def overwrites(self, s: Statement, i: int, depth: int, last: Mapping[Ref, int], kept: set[Ref]) -> bool:
        """Print a function in place, where nothing else will read its argument, a prediction and so floating."""
        operand = s.args.get("self")
        if s.op not in OVERWRITING or operand not in self.names or operand in kept or last[operand] != i:
            return False
        if self.labels[operand].role is not Role.PREDICTION:
            return False
        source = self.made.get(operand)
        alone = len(self.readers[operand]) == 1 and self.block_of.get(operand) == self.block_of[s.target]
        if not alone or source is None or not fresh(source, self.made):
            return False
        self.line(depth, f"{self.own_name(s.target)} = {OVERWRITING[s.op]}({self.names[operand]})")
        return True

    def unpack(self, s: Statement, depth: int) -> bool:
        """Print an operation with several results, where more than one is read, as one assignment to all of them."""
        count = result_count(s.op)
        parts = [p for p in self.readers.get(s.target, ()) if p is not None and p.op == "getitem"]
        measured = any(p.target in self.late_dims for p in parts)
        here = all(self.block_of[p.target] == self.block_of[s.target] for p in parts)
        if len(parts) < 2 or count is None or not here or measured or len(self.readers[s.target]) != len(parts):
            return False
        if any(p.keeps and self.own_name(p.target) != self.names[p.keeps] for p in parts):
            return False
        names = ["_"] * count
        for p in parts:
            names[p.args["index"]] = self.own_name(p.target)
            self.unpacked.add(p.target)
        expression, targets = self.expression(s), ", ".join(names)
        room = WIDTH - len(STEP * depth) - len(expression.partition("(")[0]) - len(" = (")
        targets = targets if len(targets) <= room else listed(names, STEP * depth, 0)
        self.line(depth, f"{targets} = {expression}")
        return True

    def loop(self, loop: Loop, depth: int) -> None:
        """Print a loop; a carried value keeps its name where nothing reads the old one after the new one is made."""
        for c in loop.carried:
            self.line(depth, f"{self.names[c.phi]} = {self.spell(c.start)}{'.clone()' if c.copied else ''}")
        waits = any(isinstance(s, Statement) and s.since for s in loop.body)
        counter = "done" if loop.stop else "turn" if waits else "_"
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
            self.line(depth + 1, f"calm = {self.settled(loop.stop)}")
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

    def settled(self, stop: Stop) -> str:
        """Whether a loop may end early."""
        self.speller.helpers["settled"] = SETTLED
        moves, against = (f"[{', '.join(self.spell(pair[i]) for pair in stop.pairs)}]" for i in (0, 1))
        return f"settled({moves}, {against}, {stop.below})"

    def comment(self, vertex: str, depth: int) -> None:
        """Print the heading of a vertex where one begins."""
        heading = self.heading(vertex) if vertex and vertex != self.vertex else ""
        if heading:
            self.text.append("")
            self.line(depth, f"# {heading}")
        self.vertex = vertex

    def free(self, dead: Sequence[Ref], depth: int) -> None:
        """Write `del` for values that nothing reads any more."""
        names = [self.names[r] for r in dead if r in self.names and self.owner[self.names[r]] == r]
        if names:
            line = f"del {', '.join(dict.fromkeys(names))}"
            self.line(depth, line if len(line) < WIDTH - 4 * depth else f"del ({line[4:]})")

    def line(self, depth: int, text: str) -> None:
        """Print one line, over several where it is too long."""
        *first, last = (STEP * depth + text).split("\n")
        self.text += [*first, *folded(last)]
