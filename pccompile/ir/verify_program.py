"""Checks a program before anything reads it: a wrong equation is named with its algorithm, vertex and text."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from torch import Tensor

from pccompile.diagnostics import NOWHERE, CompileError, RuleError
from pccompile.ir.equations import FUNCTIONS, TERMS, EquationError, calls, names, outside, parse
from pccompile.ir.liveness import Place, reads
from pccompile.ir.program import Do, Exchange, ForEach, Program, Repeat, Step, Until, Update

OF_OUTPUTS = ("clamp", "seed")
MADE = ("prediction", "error", "gradient")
"""Slots that every call makes."""
OF_VERTICES = ("predict", "noise", "send", "hold")


def verify_program(program: Program) -> Program:
    """`program`, once checked.

    Every equation concerns a vertex, a parameter or an input of the graph and is arithmetic; every slot that it reads
    has been assigned on every way there, where a loop may run no time at all; no slot has the name of an argument or of
    a term; tables give a number for each vertex that reads them; loops take arguments, or rows whose numbers are read
    inside only; what is kept between calls belongs to a vertex or a parameter and is assigned what has no samples.
    Raises CompileError at the first violation.
    """
    checker = _Checker(program)
    if taken := sorted({*TERMS, *FUNCTIONS} & program.arguments.keys()):
        raise checker.refuse("its arguments", f"none can be called {taken[0]}, which equations have a meaning for")
    checker.lasting()
    start = {(v.name, "prediction") for v in program.pc.vertices} | program.kept.keys()
    known = checker.steps(program.infer, start)
    checker.steps(program.learn, known)
    checker.steps(program.sweep, start)
    return program


class _Checker:
    def __init__(self, program: Program) -> None:
        self.program, self.pc = program, program.pc
        self.vertices = {v.name: v for v in self.pc.vertices}
        self.leaves, self.children = set(self.pc.graph.leaves), self.pc.children()
        self.clamped, self.ends = set(self.pc.clamped), set(self.pc.ends)
        self.numbers, self.rows = program.numbers, set[str]()
        self.hearing: AbstractSet[Place] = set()
        self.learners = {n for n in self.leaves & self.pc.reached if n in self.pc.graph.params}

    def refuse(self, what: object, why: str, vertex: str = "") -> CompileError:
        """The error that `what` of this algorithm is wrong."""
        where = self.vertices[vertex].where if vertex in self.vertices else NOWHERE
        return CompileError(f"{self.program.algorithm}: {what}: {why}", where)

    def steps(self, steps: Sequence[Step], known: AbstractSet[Place]) -> set[Place]:
        """The slots that are assigned after `steps`, where `known` are assigned before."""
        assigned = set(known)
        for s in steps:
            match s:
                case Do():
                    self.equation(s, assigned)
                    assigned.add((s.vertex, s.slot))
                case Repeat():
                    self.loop(s, assigned)
                case ForEach():
                    self.over_rows(s, assigned)
                case Update():
                    if missing := [n for n in sorted(self.learners) if (n, s.slot) not in assigned]:
                        raise self.refuse(s, f"{missing[0]} has no {s.slot} yet")
                case Exchange():
                    self.hearing = set(s.heard)
                    if unknown := sorted(set(s.told) - assigned):
                        raise self.refuse(s, f"{unknown[0][0]} has no {unknown[0][1]} yet")
        return assigned

    def loop(self, loop: Repeat, known: set[Place]) -> None:
        head = str(loop).partition("\n")[0]
        if not isinstance(self.program.arguments.get(loop.times), int):
            raise self.refuse(head, f"{loop.times} is no argument that is a whole number")
        inside = self.steps(loop.body, known)
        if loop.until is not None:
            self.until(loop.until, inside)

    def over_rows(self, loop: ForEach, known: set[Place]) -> None:
        head = str(loop).partition("\n")[0]
        for name in loop.names:
            taken = (*TERMS, *FUNCTIONS, *self.program.arguments, *self.rows)
            if name in taken or not name.isidentifier() or loop.names.count(name) > 1:
                raise self.refuse(head, f"a number of a row cannot be called {name}")
        if not loop.rows or any(len(row) != len(loop.names) for row in loop.rows):
            raise self.refuse(head, f"it needs rows of {len(loop.names)} numbers")
        if not all(math.isfinite(number) for row in loop.rows for number in row):
            raise self.refuse(head, "its rows are not finite")
        outside = set(self.rows)
        self.rows |= set(loop.names)
        self.steps(loop.body, known)
        self.rows = outside

    def until(self, until: Until, known: AbstractSet[Place]) -> None:
        owners = {o for o, slot in known if slot == until.slot and o in self.vertices}
        if not owners:
            raise self.refuse(until, f"no vertex has {until.slot}")
        if missing := sorted(o for o in owners if (o, until.against) not in known):
            raise self.refuse(until, f"{missing[0]} has no {until.against}", missing[0])
        if until.below not in self.program.arguments:
            raise self.refuse(until, f"{until.below} is no argument")

    def equation(self, d: Do, known: AbstractSet[Place]) -> None:
        """Raise CompileError unless `d` can be evaluated where `known` slots are assigned."""
        if d.vertex not in (self.leaves if d.slot == "gradient" else self.vertices.keys() | self.leaves):
            what = f"{self.program.algorithm} updates {d.slot} of {d.vertex}, which the graph does not have"
            raise CompileError(what)
        reserved = (*TERMS, *FUNCTIONS, *self.numbers)
        if d.slot in reserved or not d.slot.isidentifier():
            raise self.refuse(d, f"a slot cannot be called {d.slot}", d.vertex)
        try:
            read = set(names(parse(d.equation)))
        except EquationError as e:
            raise self.refuse(d, str(e), d.vertex) from None
        if of_numbers := next((c for c in calls(parse(d.equation)) if set(names(c)) <= self.numbers.keys()), None):
            name = ast.unparse(of_numbers)
            raise self.refuse(d, f"{name} is a function of numbers alone: give its value as a setting", d.vertex)
        self.terms(d, read)
        self.tables(d, read)
        self.without_samples(d)
        if outside := read & (self.numbers.keys() - self.program.arguments.keys() - self.rows):
            raise self.refuse(d, f"{min(outside)} is a number of a loop that this is not in", d.vertex)
        for owner, slot in sorted(set(reads(d, self.numbers, self.children, self.vertices, known)) - known):
            if slot not in TERMS:
                of = "" if owner == d.vertex else f" of {owner}"
                raise self.refuse(d, f"{slot}{of} is no slot that has been assigned, no argument and no term", d.vertex)

    def terms(self, d: Do, read: AbstractSet[str]) -> None:
        if d.vertex not in self.ends and (loss_terms := read & set(OF_OUTPUTS)):
            raise self.refuse(d, f"{min(loss_terms)} is a term of outputs", d.vertex)
        if "heard" in read and (d.vertex, d.slot) not in self.hearing:
            raise self.refuse(d, "heard is a term of what the exchange before it brings", d.vertex)
        if d.vertex not in self.pc.observed and "given" in read:
            raise self.refuse(d, "given is a term of observed vertices", d.vertex)
        if d.vertex not in self.vertices and (loss_terms := read & set(OF_VERTICES)):
            raise self.refuse(d, f"{min(loss_terms)} is a term of vertices", d.vertex)

    def lasting(self) -> None:
        """Raise CompileError unless everything that is kept between calls can be."""
        declared = [lasting.place for lasting in (*self.pc.lasting, *self.program.lasting)]
        for lasting in self.program.kept.values():
            owner, slot = lasting.place
            if owner not in self.vertices and owner not in self.pc.graph.params:
                raise self.refuse(f"lasting {lasting}", f"{owner} is no vertex and no parameter")
            if slot in (*TERMS, *FUNCTIONS, *self.numbers, *MADE) or not slot.isidentifier():
                raise self.refuse(f"lasting {lasting}", f"what is kept between calls cannot be called {slot}", owner)
            if declared.count(lasting.place) > 1:
                raise self.refuse(f"lasting {lasting}", "it is kept twice", owner)
            shape = self.vertices[owner].type.shape[1:] if owner in self.vertices else ()
            if not (lasting.single or isinstance(lasting.start, Tensor) or all(isinstance(d, int) for d in shape)):
                why = f"a sample of {owner} has no fixed shape: {self.vertices[owner].type}"
                raise RuleError(self.refuse(f"lasting {lasting}", why, owner).problems)

    def without_samples(self, d: Do) -> None:
        """Raise CompileError where what outlives a batch would be assigned something of each of its samples."""
        lasting = self.program.kept.get((d.vertex, d.slot))
        if lasting is None:
            return
        equation = parse(d.equation)
        if set(names(equation)) <= self.numbers.keys():
            raise self.refuse(d, f"{d.slot} is kept between calls, and a number alone has no shape", d.vertex)
        if d.vertex not in self.vertices:
            return
        by = ("average",) if lasting.single else ("average", "mean")
        for name in outside(equation, *by):
            other = self.program.kept.get((d.vertex, name))
            if name not in self.numbers and (other is None or (lasting.single and not other.single)):
                of = "numbers of the whole vertex" if lasting.single and other else "samples"
                hint = " or ".join(f"{f}({name})" for f in by)
                raise self.refuse(d, f"{d.slot} is kept between calls, and {name} is of {of}: take {hint}", d.vertex)

    def tables(self, d: Do, read: AbstractSet[str]) -> None:
        for name in read & set(self.program.arguments):
            table = self.program.arguments[name]
            if not isinstance(table, int | float) and d.vertex not in table:
                raise self.refuse(d, f"{name} has no entry for {d.vertex}", d.vertex)
