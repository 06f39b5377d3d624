"""Loops whose values move where they lie: steps and their scaling in one kernel, without memory of their own.

A carried value may be overwritten where nothing reads the old one afterwards, under its own name or through a view, and
where its memory belongs to the loop alone: a value that a loop starts from is copied once, unless it was made for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pccompile.backends.torch.statements import EFFECTS, Carried, Function, Line, Loop, Statement, fresh, statements_of
from pccompile.ir import Arg, Ref, refs
from pccompile.ops import definition

ADD, SUB, MUL = "aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"
MM, ADDMM = "aten.mm.default", "aten.addmm.default"
LERP = "aten.lerp.Scalar"


def moved_in_place(f: Function, arguments: Collection[str]) -> Function:
    """`f` with loops that overwrite what they carry. arguments: the function's arguments that are numbers.

    Loops that show their values to a trace stay as they are: it may keep them.
    """
    pass_ = _InPlace(f, arguments)
    return replace(f, lines=pass_.lines(f.lines))


def is_number(arg: object, made: Mapping[Ref, Statement], arguments: Collection[str]) -> bool:
    """Whether an argument is a number, or an expression over the function's arguments."""
    if isinstance(arg, int | float):
        return True
    s = made.get(arg) if isinstance(arg, Ref) else None
    numbers = s.args.get("numbers") if s else None
    return numbers is not None and set(numbers) <= set(arguments)


class _InPlace:
    def __init__(self, f: Function, arguments: Collection[str]) -> None:
        self.arguments = set(arguments)
        self.made = {s.target: s for s in f.statements()}
        self.readers = Counter([*f.results.values(), *_reads(f.lines)])

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """`lines`, with every loop changed, those inside first."""
        beside = {s.target for s in lines if isinstance(s, Statement)}
        changed = (isinstance(x, Loop) and bool(x.turns.times) and not x.record for x in lines)
        return [self.loop(x, beside) if c and isinstance(x, Loop) else x for x, c in zip(lines, changed, strict=True)]

    def loop(self, loop: Loop, beside: Collection[Ref]) -> Loop:
        """A loop, changed. beside: what is made anew whenever the loop is run."""
        body = self.lines(self.fused(loop.body))
        loop = replace(loop, body=body)
        uses = Uses(loop, self.made)
        carried = [self.carried(c, uses, beside) for c in loop.carried]
        return replace(loop, carried=carried)

    # fewer kernels

    def fused(self, body: Sequence[Line]) -> list[Line]:
        """`body` with v + r x as one operation, and v + r (A B − e) as two, also where e = v − p is read there only."""
        places = {s.target: i for i, s in enumerate(body) if isinstance(s, Statement)}
        barriers = [i for i, s in enumerate(body) if isinstance(s, Loop) or s.op in EFFECTS]
        dropped: set[Statement] = set()
        lines: list[Line] = []
        for i, line in enumerate(body):
            if isinstance(line, Statement):
                since = max((b for b in barriers if b < i), default=-1)
                lines += self.step(line, {r for r, place in places.items() if place > since}, dropped)
            else:
                lines.append(line)
        return [line for line in lines if isinstance(line, Loop) or line not in dropped]

    def step(self, s: Statement, inside: set[Ref], dropped: set[Statement]) -> list[Statement]:
        """A statement, or what takes its place; `dropped` are those that it takes in, made by lines `inside`."""
        scaled = self.once(s.args.get("other"), MUL, inside) if s.op == ADD and s.args["alpha"] == 1 else None
        factors = self.factors(scaled) if scaled and s.even and scaled.even else None
        if scaled is None or factors is None:
            return [s]
        dropped.add(scaled)
        whole = replace(s, args={**s.args, "other": factors[0], "alpha": factors[1]})
        self.made[s.target] = whole
        force = self.once(whole.args["other"], SUB, inside)
        product = self.once(force.args["self"], MM, inside) if force and force.args["alpha"] == 1 else None
        if force is None or product is None or not force.even or not isinstance(force.args["other"], Ref):
            return [whole]
        dropped |= {force, product}
        op, args = SUB, {**whole.args, "other": force.args["other"]}
        error = self.once(force.args["other"], SUB, inside)
        if error and error.even and error.args["self"] == s.args["self"] and error.args["alpha"] == 1:
            dropped.add(error)
            op, args = LERP, {"self": s.args["self"], "end": error.args["other"], "weight": whole.args["alpha"]}
        first = Statement(force.target, op, args, s.vertex, True, since=s.since, owner=s.owner)
        matrices = {"mat1": product.args["self"], "mat2": product.args["mat2"]}
        args = {"self": first.target, **matrices, "beta": 1, "alpha": whole.args["alpha"]}
        last = Statement(s.target, ADDMM, args, s.vertex, True, since=s.since, keeps=s.keeps, owner=s.owner)
        self.made |= {first.target: first, last.target: last}
        return [first, last]

    def once(self, value: object, op: str, inside: set[Ref]) -> Statement | None:
        """The statement of the body that makes `value` by `op`, if nothing else reads it."""
        s = self.made.get(value) if isinstance(value, Ref) else None
        return s if s and s.op == op and s.target in inside and self.readers[s.target] == 1 else None

    def factors(self, product: Statement) -> tuple[Arg, Arg] | None:
        """The tensor of a product, and the number that it is multiplied by, if one of them is a number."""
        both = product.args["self"], product.args["other"]
        numbers = [is_number(a, self.made, self.arguments) for a in both]
        return None if numbers[0] == numbers[1] else both if numbers[1] else both[::-1]

    # no memory of their own

    def carried(self, c: Carried, uses: Uses, beside: Collection[Ref]) -> Carried:
        """A carried value; where it can be overwritten, the statements on its way do so."""
        chain = uses.chain(c)
        if not chain or not uses.overwritten(c, chain):
            return c
        for s in chain:
            s.into, s.keeps = s.args["self"], None
        start = self.made.get(c.start)
        own = c.start in beside and start is not None and fresh(start, self.made) and self.readers[c.start] == 1
        return replace(c, copied=not own)


@dataclass
class Uses:
    """Which memory the values of a loop's body are in, and where they are read."""

    loop: Loop
    made: Mapping[Ref, Statement]

    def __post_init__(self) -> None:
        body, phis = self.loop.body, {c.phi for c in self.loop.carried}
        self.end = len(body)
        self.memory: dict[Ref, frozenset[Ref]] = {phi: frozenset((phi,)) for phi in phis}
        self.last: dict[Ref, int] = {}
        self.count: Counter[Ref] = Counter()
        self.place: dict[Ref, int] = {}
        self.handed: set[Ref] = set()
        """What others may keep: they are handed gradients within the loop."""
        for i, line in enumerate(body):
            if any(s.op in EFFECTS for s in statements_of([line])):
                self.handed.update(line.reads)
            for r in line.reads if isinstance(line, Loop) else refs(line.args.values()):
                self.last[r] = i
                self.count[r] += 1
            if isinstance(line, Loop):
                within = frozenset().union(*(self.of(r) for r in line.reads))
                self.memory |= {c.phi: frozenset((c.phi,)) | within for c in line.carried}
                continue
            self.place[line.target] = i
            new = fresh(line, self.made)
            own = frozenset((line.target,)) if new else frozenset().union(*map(self.of, refs(line.args.values())))
            self.memory[line.target] = own | self.of(line.keeps) if line.keeps else own
        for r in (*(c.next for c in self.loop.carried), *self.loop.shown):
            self.last[r] = self.end
            self.count[r] += 1

    def of(self, value: Ref) -> frozenset[Ref]:
        """The memories that a value may be in."""
        return self.memory.get(value, frozenset((value,)))

    def chain(self, c: Carried) -> list[Statement]:
        """The statements from a carried value to what it is after a step, each the only reader of the one before."""
        found: list[Statement] = []
        value = c.next
        while value != c.phi:
            s = self.made.get(value)
            if s is None or value not in self.place or not definition(s.op).in_place or not s.even or s.into:
                return []
            if (found and (self.count[value] != 1 or s.keeps)) or s.keeps not in (None, c.phi):
                return []
            if sum(r == s.args["self"] for r in refs(s.args.values())) != 1 or not isinstance(s.args["self"], Ref):
                return []
            found.append(s)
            value = s.args["self"]
        return found[::-1]

    def overwritten(self, c: Carried, chain: Sequence[Statement]) -> bool:
        """Whether nothing needs the old value, or another that may lie in its memory, once the first step writes."""
        first, own = self.place[chain[0].target], {s.target for s in chain}
        if any(self.of(r) & {c.phi, *own} for r in self.handed):
            return False
        kept = ((i, s) for i, s in enumerate(self.loop.body) if isinstance(s, Statement) and s.keeps)
        if any(i > first and s.target not in own and c.phi in self.of(s.keeps) for i, s in kept if s.keeps):
            return False
        shared = [v for v, memory in self.memory.items() if c.phi in memory and v not in own]
        if any(self.last.get(v, -1) > first or (self.last.get(v) == first and v != c.phi) for v in shared):
            return False
        return not any(self.of(c.next) & self.of(other.next) for other in self.loop.carried if other is not c)


def _reads(lines: Iterable[Line]) -> list[Ref]:
    """What all statements and loops read, as often as they do."""
    found: list[Ref] = []
    for line in lines:
        if isinstance(line, Statement):
            found += line.reads
            continue
        found += [r for c in line.carried for r in (c.start, c.next)] + line.shown
        found += _reads(line.body)
    return found
