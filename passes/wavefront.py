"""The wavefront: slots that keep their value in a loop until the news from an output has reached them.

From the forward pass a hidden vertex has no error until something that it reads, or that reads it, has moved. What each
equation gives is followed from turn to turn as a symbol, equal where it is computed alike from equal symbols; a slot
whose symbol is that of its value before the loop need not be computed. That holds for any graph and any equations.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace

from pccompile.ir import Do, Program, Repeat, Step, Update, flat, steps_of
from pccompile.ir.equations import parse
from pccompile.ir.liveness import Place

MOST = 60_000
"""So many equations are followed at most; what has not moved by then counts as moved."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor, by what it is computed from."""

    number: int


Symbol = float | tuple[Hashable, ...] | Made
"""What a slot holds: a number everywhere, an expression over numbers that are known at run time, or a tensor."""
NUMERIC: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "sin": math.sin,
    "tanh": math.tanh,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "clip": lambda x, low, high: min(max(x, low), high),
    "mean": lambda x: x,
}
OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}


def wavefront(program: Program) -> Program:
    """`program`, whose loops know for how many turns slots that have a value keep it."""
    followed = _Symbols(program)
    return replace(program, infer=tuple(followed.run(program.infer)))


class _Symbols:
    def __init__(self, program: Program) -> None:
        self.pc, self.arguments = program.pc, frozenset(program.numbers)
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.children = self.pc.children()
        self.ids: dict[Hashable, Made] = {}
        self.numbers = itertools.count()
        self.parameters = self.fresh()
        self.slots: dict[Place, Symbol] = {place: self.fresh() for place in program.kept}
        for v in self.pc.vertices:
            self.slots[v.name, "prediction"] = self.predicted(v.name, "prediction")

    def run(self, steps: Iterable[Step]) -> list[Step]:
        """The steps, followed one after another."""
        followed: list[Step] = []
        for s in steps:
            if isinstance(s, Repeat):
                s = self.repeat(s)
            elif isinstance(s, Do):
                self.slots[s.vertex, s.slot] = self.value(s, parse(s.equation))
            else:
                self.pass_over(s)
            followed.append(s)
        return followed

    def repeat(self, loop: Repeat) -> Repeat:
        """A loop, which knows what stays in it for how long; nothing where it may stop, learns or has loops inside."""
        body = [s for s in loop.body if isinstance(s, Do)]
        unmoved: dict[Place, int] = {}
        if len(body) == len(loop.body) and loop.until is None:
            unmoved = {place: turn for place, turn in self.moving(body).items() if turn}
        self.pass_over(loop)
        return replace(loop, unmoved=unmoved)

    def moving(self, body: list[Do]) -> dict[Place, int]:
        """For each slot that has a value before a loop, the turn in which it first changes."""
        carried = {(d.vertex, d.slot) for d in body} & self.slots.keys()
        turns: dict[Place, int] = {}
        last: set[Place] = set()
        for turn in range(1 + MOST // max(len(body), 1)):
            changed: set[Place] = set()
            for d in body:
                place = d.vertex, d.slot
                value = self.value(d, parse(d.equation))
                if value != self.slots.get(place):
                    changed.add(place)
                self.slots[place] = value
            for place in (changed & carried) - turns.keys():
                turns[place] = turn
            if changed == last:  # news goes no farther: whatever has not moved never will
                return turns
            last = changed
        return turns | dict.fromkeys(carried - turns.keys(), turn)

    def forget(self, places: Iterable[Place]) -> None:
        """From here on these slots hold what nothing else holds."""
        for place in list(places):
            self.slots[place] = self.fresh()

    def pass_over(self, step: Step) -> None:
        """Behind a step: what it assigns is nothing known, and where parameters change, nor is what is made of them."""
        self.forget({(d.vertex, d.slot) for d in flat([step])})
        if any(isinstance(s, Update) for s in steps_of([step])):
            self.parameters = self.fresh()

    # symbols

    def fresh(self) -> Made:
        """What nothing else is."""
        return Made(next(self.numbers))

    def tensor(self, *key: Hashable) -> Made:
        """The symbol of what is computed in this way."""
        if key not in self.ids:
            self.ids[key] = self.fresh()
        return self.ids[key]

    def value(self, d: Do, e: ast.expr) -> Symbol:
        """What an equation gives."""
        match e:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return ("argument", name, d.vertex) if name in self.arguments else self.term(d, name)
            case ast.UnaryOp(operand=operand):
                value = self.value(d, operand)
                return -value if isinstance(value, float) else self.made("negative", value)
            case ast.BinOp(left=left, op=op, right=right):
                return self.arithmetic(op, self.value(d, left), self.value(d, right))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.made(type(op).__name__, self.value(d, left), self.value(d, right))
            case ast.Call(func=ast.Name(id="across"), args=[ast.Name(id=slot)]):
                everywhere = [(v, self.slots[v, slot]) for v in self.vertices if (v, slot) in self.slots]
                return self.tensor("across", d.vertex, *everywhere)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.function(name, [self.value(d, a) for a in args])
        raise AssertionError(f"{d}: verify_program lets nothing else through")

    def made(self, *parts: Hashable) -> Symbol:
        """What is computed from these: a number of the run where all of them are."""
        return parts if not any(isinstance(p, Made) for p in parts) else self.tensor(*parts)

    def function(self, name: str, args: list[Symbol]) -> Symbol:
        numbers = [a for a in args if isinstance(a, float)]
        if name in NUMERIC and len(numbers) == len(args):
            try:
                return float(NUMERIC[name](*numbers))
            except (ValueError, OverflowError):
                pass
        return self.tensor("function", name, *args)

    def arithmetic(self, op: ast.operator, a: Symbol, b: Symbol) -> Symbol:
        """a op b. Nothing times what is finite, and what is equal from what is equal, leaves nothing."""
        if isinstance(a, float) and isinstance(b, float):
            try:
                return float(OPERATIONS[type(op)](a, b))
            except (ZeroDivisionError, OverflowError, TypeError, ValueError):
                return self.tensor(type(op).__name__, a, b)
        zero = a == 0.0 and isinstance(a, float), b == 0.0 and isinstance(b, float)
        match op:
            case ast.Add() if any(zero):
                return b if zero[0] else a
            case ast.Sub() if zero[1]:
                return a
            case ast.Sub() if a == b:
                return 0.0
            case ast.Mult() if any(zero) and not isinstance(b if zero[0] else a, Made):
                return 0.0
            case ast.Div() if zero[0] and not isinstance(b, Made):
                return 0.0
        return self.made(type(op).__name__, a, b)

    def term(self, d: Do, name: str) -> Symbol:
        """What a name in an equation stands for that is no argument."""
        match name:
            case "predict":
                return self.predicted(d.vertex, d.at)
            case "pull":
                return self.pull(d)
            case "zero":
                return 0.0
            case "given":
                return self.tensor("given", d.vertex)
            case "clamp" if d.vertex in self.pc.observed:
                energy = self.vertices[d.vertex].energy
                return self.value(d, parse(energy.send if energy else "error"))
            case "clamp":
                return self.tensor("clamp", d.vertex, *(self.slots[o.vertex, "prediction"] for o in self.pc.outputs))
            case "noise":
                return self.fresh()
            case "seed":
                return self.tensor("seed", d.vertex)
            case "send" | "hold":
                energy = self.vertices[d.vertex].energy
                return self.value(d, parse(getattr(energy, name) if energy else "error"))
        return self.slots[d.vertex, name]

    def predicted(self, vertex: str, at: str) -> Made:
        return self.tensor("predict", vertex, self.parameters, *self.parents(vertex, at))

    def parents(self, vertex: str, at: str) -> Iterable[Symbol]:
        """What the rules of a vertex read."""
        for p in self.vertices[vertex].parents:
            if p in self.vertices:
                yield self.slots[p, at if (p, at) in self.slots else "prediction"]

    def pull(self, d: Do) -> Symbol:
        """The messages of the children: nothing where none of them sends anything."""
        parts: list[Hashable] = []
        for child in self.children[d.vertex]:
            weights = {d.carries: 1.0} if isinstance(d.carries, str) else d.carries.get(child.name, {})
            sent = [(self.slots[child.name, slot], weight) for slot, weight in weights.items()]
            if any(symbol != 0.0 or not isinstance(symbol, float) for symbol, _ in sent):
                parts += [child.name, *sent, *self.parents(child.name, d.at)]
        return self.tensor("pull", d.vertex, self.parameters, *parts) if parts else 0.0
