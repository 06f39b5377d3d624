"""The program: the order in which an algorithm runs the rules of a predictive-coding graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pccompile.diagnostics import CompileError
from pccompile.ir.pc import PCGraph


@dataclass(frozen=True, slots=True)
class Do:
    """`slot = equation`, for one vertex; or for a parameter or an input, whose only slot is `gradient`.

    An equation is Python arithmetic over the vertex's own slots, numbers, runtime arguments (`rate`) and
        predict    the vertex's prediction, its parents read at slot `at`
        pull       the sum over its children of J^T x, J taken at slot `at`
        clamp      minus the loss gradient at an output's current prediction
    x is the child's slot `carries`. A mapping gives each child's x as a sum of its slots with weights, {"part2": 0.9};
    a child that it leaves out sends nothing.
    """

    vertex: str
    slot: str
    equation: str
    at: str = "prediction"
    carries: str | Mapping[str, Mapping[str, float]] = "error"

    def __str__(self) -> str:
        return f"{self.slot}[{self.vertex}] = {self.equation}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run `body` `times` times: a runtime argument's name."""

    times: str
    body: tuple[Do, ...]

    def __str__(self) -> str:
        return "\n".join([f"repeat {self.times}:", *(f"  {d}" for d in self.body)])


Step = Do | Repeat


@dataclass(frozen=True, slots=True)
class Program:
    """A schedule over the rules of `pc`, in three phases.

    `sweep`, where an algorithm has one, does inference and learning together so that each error can be dropped when it
    has been read for the last time; it must give what `infer` and then `learn` give. `arguments` are the runtime
    arguments with their defaults. `state` is the slot in which a trace of inference finds each vertex's value; ''
    means prediction + error. `facts` are lines for the reader, such as the predicted gradient error.
    """

    pc: PCGraph
    algorithm: str
    infer: tuple[Step, ...]
    learn: tuple[Step, ...]
    sweep: tuple[Step, ...] = ()
    arguments: Mapping[str, float | int] = field(default_factory=dict)
    state: str = ""
    facts: tuple[str, ...] = ()

    def __str__(self) -> str:
        phases = (("infer", self.infer), ("learn", self.learn), ("sweep", self.sweep))
        lines = [f"program {self.algorithm} {{"]
        for name, steps in phases:
            lines += [f"  {name}:", *(f"    {line}" for s in steps for line in str(s).splitlines())]
        return "\n".join([*lines, "}"])


def flat(steps: tuple[Step, ...]) -> Iterator[Do]:
    """Every Do in `steps`, those in loops included."""
    for s in steps:
        yield from s.body if isinstance(s, Repeat) else (s,)


def verify_program(program: Program) -> Program:
    """`program`, once checked: every Do concerns a vertex, or the gradient of a parameter or an input, of its graph."""
    vertices, leaves = set(program.pc.names), set(program.pc.graph.leaves)
    for d in flat((*program.infer, *program.learn, *program.sweep)):
        if d.vertex not in (leaves if d.slot == "gradient" else vertices):
            raise CompileError(f"{program.algorithm} updates {d.slot} of {d.vertex}, which the graph does not have")
    return program
