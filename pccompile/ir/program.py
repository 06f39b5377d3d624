"""The program: the order in which an algorithm runs the rules of a predictive-coding graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pccompile.ir.lasting import Lasting
from pccompile.ir.pc import PCGraph


@dataclass(frozen=True, slots=True)
class Do:
    """`slot = equation`, for one vertex; or for a parameter or an input, whose gradient that is as a rule.

    An equation is arithmetic (see `ir.equations`) over the owner's own slots, numbers, runtime arguments (`rate`) and
        predict    the vertex's prediction, its parents read at slot `at`
        pull       the sum over its children of J^T x, J taken at slot `at`
        clamp      minus the loss gradient at an output's current prediction
        send hold  −∂E/∂v̂ and ∂E/∂v of the vertex's energy; value − prediction where none is given
        noise zero a fresh standard normal sample, and zeros, of the value's shape
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
class Until:
    """Stop a loop when every vertex that has `slot` has ‖slot‖ ≤ below · ‖against‖, after `least` steps at least.

    below: a runtime argument's name, or the text of a number. The norms are taken over the whole batch. Before `least`
    steps, the longest path to an output as a rule, vertices far from it are silent and look settled.
    """

    slot: str
    against: str
    below: str
    least: int = 0

    def __str__(self) -> str:
        return f"until |{self.slot}| <= {self.below} |{self.against}|, after {self.least}"


@dataclass(frozen=True, slots=True)
class Update:
    """Hand the `slot` of every parameter to the optimizer, which changes the parameters: what is read next is new."""

    slot: str = "gradient"

    def __str__(self) -> str:
        return f"update parameters by {self.slot}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """Tell the neighbours slots of vertices, and hear from them what the `heard` of the equations that follow are.

    A program that is divided between processes has them: see passes.divide_program. number: which of its exchanges this
    is. told, heard: (owner, slot); a slot that is heard has the shape of its owner's value.
    """

    number: int
    told: tuple[tuple[str, str], ...]
    heard: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        told, heard = (", ".join(f"{slot}[{owner}]" for owner, slot in places) for places in (self.told, self.heard))
        return (
            f"exchange {self.number}: {'; '.join(filter(None, (told and f'tell {told}', heard and f'hear {heard}')))}"
        )


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run `body` `times` times, a runtime argument's name, or until its vertices have settled.

    unmoved: (owner, slot) and for how many turns that slot keeps the value that it has before the loop, so that nothing
    which it is computed from need be computed: see passes.wavefront.
    """

    times: str
    body: tuple[Step, ...]
    until: Until | None = None
    unmoved: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"repeat {self.times}{f' {self.until}' if self.until else ''}:"
        return "\n".join([head, *(f"  {line}" for s in self.body for line in self._lines(s))])

    def _lines(self, s: Step) -> list[str]:
        turn = self.unmoved.get((s.vertex, s.slot), 0) if isinstance(s, Do) else 0
        return [f"{s}{f', from turn {turn}' if turn else ''}"] if isinstance(s, Do) else str(s).splitlines()


@dataclass(frozen=True, slots=True)
class ForEach:
    """Run `body` once for each of `rows`; in its equations each of `names` is the row's number."""

    names: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    body: tuple[Step, ...]

    def __str__(self) -> str:
        head = f"for each {', '.join(self.names)} of {', '.join(map(str, self.rows))}:"
        return "\n".join([head, *(f"  {line}" for s in self.body for line in str(s).splitlines())])


Step = Do | Repeat | ForEach | Update | Exchange
Argument = float | int | Mapping[str, float]
"""A runtime argument's default: a number, or a table of numbers by vertex."""


@dataclass(frozen=True, slots=True)
class Program:
    """A schedule over the rules of `pc`, in three phases.

    `sweep`, where an algorithm has one, does inference and learning together so that each error can be dropped when it
    has been read for the last time; it must give what `infer` and then `learn` give. `arguments` are the runtime
    arguments with their defaults. `state` is the slot in which a trace of inference finds each vertex's value; ''
    means prediction + error, and that predictions do not move. `facts` are lines for the reader, such as the predicted
    gradient error. `tolerance` is how far errors may be from what the algorithm defines, relative to backpropagation's.
    `also` are slots that inference hands on though learning does not read them. `lasting` are slots that are kept
    between calls: each has a value from the start, and what it is assigned at last is what the next call begins with.
    """

    pc: PCGraph
    algorithm: str
    infer: tuple[Step, ...]
    learn: tuple[Step, ...]
    sweep: tuple[Step, ...] = ()
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    state: str = ""
    facts: tuple[str, ...] = ()
    tolerance: float = 0.0
    also: tuple[str, ...] = ()
    lasting: tuple[Lasting, ...] = ()

    def __str__(self) -> str:
        phases = (("infer", self.infer), ("learn", self.learn), ("sweep", self.sweep))
        lines = [f"program {self.algorithm} {{", *(f"  lasting: {kept}" for kept in self.kept.values())]
        for name, steps in phases:
            lines += [f"  {name}:", *(f"    {line}" for s in steps for line in str(s).splitlines())]
        return "\n".join([*lines, "}"])

    @property
    def numbers(self) -> Mapping[str, Argument]:
        """What equations may read that is no slot: the runtime arguments, and the numbers of loops over rows."""
        loops = (s for phase in (self.infer, self.learn, self.sweep) for s in steps_of(phase))
        rows = {n: 0.0 for s in loops if isinstance(s, ForEach) for n in s.names}
        return {**self.arguments, **rows}

    @property
    def kept(self) -> Mapping[tuple[str, str], Lasting]:
        """What is kept between calls, by owner and slot: for the algorithm, and for the energies of vertices."""
        return {kept.place: kept for kept in (*self.pc.lasting, *self.lasting)}

    @property
    def moved(self) -> Mapping[tuple[str, str], Lasting]:
        """What of that a call changes."""
        assigned = {(d.vertex, d.slot) for phase in (self.infer, self.learn) for d in flat(phase)}
        return {place: kept for place, kept in self.kept.items() if place in assigned}

    @property
    def updates(self) -> bool:
        """Whether inference itself changes parameters."""
        return any(isinstance(s, Update) for s in steps_of(self.infer))

    @property
    def exchanges(self) -> bool:
        """Whether it is the part of a process that has neighbours."""
        return any(isinstance(s, Exchange) for s in steps_of(self.infer))


def steps_of(steps: Sequence[Step]) -> Iterator[Step]:
    """Every step, those in loops included, each loop before what it holds."""
    for s in steps:
        yield s
        if isinstance(s, Repeat | ForEach):
            yield from steps_of(s.body)


def flat(steps: Sequence[Step]) -> Iterator[Do]:
    """Every Do in `steps`, those in loops included."""
    return (s for s in steps_of(steps) if isinstance(s, Do))
