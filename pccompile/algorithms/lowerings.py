"""The forms in which fixed prediction can be evaluated: what each costs, how close it comes, and its program."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch

from pccompile.algorithms.combinations import Combinations
from pccompile.algorithms.common import clamped, learn, learners, sweep
from pccompile.algorithms.exponentials import MOST_NODES, Sections, closest
from pccompile.algorithms.law import PathLengths, path_lengths
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, ForEach, PCGraph, Program, Repeat, Step
from pccompile.ir.law import weight
from pccompile.ir.program import Argument

Lowering = Literal["closed-form", "combinations", "exponentials", "relax"]
MOST_PARTS = 3000
"""The longest program without a loop that is chosen by itself: each part is a few lines of the generated file."""
MOST_ERRORS = 4
"""A program without a loop is chosen by itself where vertices carry so many errors or parts on average at most: its
file is then up to three times as long as that of exact, what repeats written out. That of exponentials is slower."""
FINEST, ROUNDINGS, COARSEST = 1e-9, 256, 1e-3
"""How close to the steps a lowering is to come by default: as many roundings of the type, within these bounds."""
SHORT = 1.25
"""The closed form, which is exact, is taken where it has at most so many times the messages of backpropagation, or of
what has fewest."""


class Lowerings:
    """All forms of `steps` steps of size `rate` on a graph, each made when it is asked for.

    tolerance: how far the weights of paths may be from the law's; None stands for what the coarsest type of the
    vertices allows.
    """

    def __init__(self, pc: PCGraph, paths: PathLengths, steps: int, rate: float, tolerance: float | None) -> None:
        self.pc, self.paths, self.steps, self.rate = pc, paths, steps, rate
        kinds = [v.type.dtype for v in pc.vertices if v.type.dtype.is_floating_point or v.type.dtype.is_complex]
        self.kind = max(kinds, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)
        self.eps = torch.finfo(self.kind).eps
        self.tolerance = tolerance or min(max(FINEST, ROUNDINGS * self.eps), COARSEST)
        self.law = [weight(steps, rate, k) for k in range(max(paths.longest + 1 + (paths.longest + 1) % 2, 4))]

    @functools.cached_property
    def damped(self) -> DampedSweeps:
        """The law as a sum of exponentials."""
        return DampedSweeps(self.pc, self.paths, self.law, self.tolerance, self.eps)

    @functools.cached_property
    def learning(self) -> Combinations:
        """What to carry for the errors of vertices that read a parameter or an input that learns."""
        children = self.pc.children()
        wanted = {c.name for name in learners(self.pc) for c in children[name]}
        return Combinations(self.pc, self.paths, self.law, wanted, self.tolerance, self.eps)

    @functools.cached_property
    def all_errors(self) -> Combinations:
        """What to carry for the errors of all vertices."""
        return Combinations(self.pc, self.paths, self.law, self.pc.names, self.tolerance, self.eps)

    def cheapest(self) -> tuple[Lowering, tuple[str, ...]]:
        """What has the fewest messages from vertex to vertex; and why, where it is the steps.

        The closed form, which is exact, is taken before others that are hardly shorter.
        """
        within, sets, children = (1 << self.steps) - 1, self.paths.sets, self.pc.children()
        edges = [c.name for v in self.pc.latent for c in children[v.name]]
        parts = self.paths.parts(self.steps)
        costs: dict[Lowering, float] = {"relax": self.steps * len(edges)}
        longest = min(MOST_PARTS, MOST_ERRORS * len(self.pc.vertices))
        if parts <= longest:
            costs["closed-form"] = sum((sets[c] & within).bit_count() for c in edges) / SHORT
            if costs["closed-form"] <= len(edges):
                return "closed-form", ()
        combined = (self.learning, self.all_errors)
        if all(c.error <= self.tolerance and len(c.slots) <= longest for c in combined):
            costs["combinations"] = self.learning.messages
        if "combinations" not in costs and self.damped.error <= self.tolerance:
            costs["exponentials"] = self.damped.messages
        found: Lowering = min(costs, key=costs.__getitem__)
        return found, (f"relaxed step by step: the closed form would have {parts} parts",) if found == "relax" else ()

    def program(self, lowering: Lowering, facts: tuple[str, ...]) -> Program:
        """The program of a form. Raises CompileError where it is not close enough to the steps."""
        match lowering:
            case "closed-form":
                return closed_form(self.pc, self.steps, self.rate, facts)
            case "combinations":
                self._refuse_if_far(max(self.learning.error, self.all_errors.error), "combinations")
                return self._combined(facts)
            case "exponentials":
                self._refuse_if_far(self.damped.error, f"{MOST_NODES} exponentials")
                return self.damped.program(facts)
        start = (*clamped(self.pc), *(Do(v.name, "error", "zero") for v in self.pc.latent))
        relax = tuple(Do(v.name, "error", "error + rate * (pull - error)") for v in self.pc.latent)
        arguments: dict[str, Argument] = {"steps": self.steps, "rate": self.rate}
        infer: tuple[Step, ...] = (*start, Repeat("steps", relax))
        return Program(self.pc, "fixed-prediction", infer, tuple(learn(self.pc)), arguments=arguments, facts=facts)

    def _combined(self, facts: tuple[str, ...]) -> Program:
        """The independent errors of each vertex; in one sweep with learning, of what parameters learn by."""
        pc, error = self.pc, max(self.learning.error, self.all_errors.error)
        inference = tuple(self.learning.steps("minus_"))
        facts = (
            *facts,
            f"{len(self.learning.slots)} combinations of errors at {len(pc.vertices)} vertices in place of the steps: "
            f"the weights of their paths are those of the steps up to {error:.1g}",
        )
        return Program(
            pc,
            "fixed-prediction",
            tuple(self.all_errors.steps()),
            tuple(learn(pc)),
            tuple(sweep(pc, inference, "minus_error")),
            facts=facts,
            tolerance=max(self.tolerance, error),
        )

    def _refuse_if_far(self, error: float, what: str) -> None:
        """Raise CompileError unless the weights are close to the law's."""
        if error > self.tolerance:
            steps = f"{self.steps} steps of size {self.rate:g} in {str(self.kind).removeprefix('torch.')}"
            hint = f"leave the lowering open, or take a lowering_tolerance above {error:.2g}"
            raise CompileError(f"no {what} come within {self.tolerance:.2g} of {steps}", hint=hint)


def closed_form(pc: PCGraph, steps: int, rate: float, facts: tuple[str, ...]) -> Program:
    """Each error as a weighted sum of parts, one for each path length; a part is propagated once."""
    lengths = {v: [k for k in ks if k <= steps] for v, ks in path_lengths(pc).items()}
    infer: list[Do] = []
    for d in _parts(pc, lengths, "part", "clamp"):
        infer.append(d)
        if d.slot == f"part{lengths[d.vertex][-1]}":
            infer.append(Do(d.vertex, "error", _weighted(lengths[d.vertex], steps, rate)))
    infer += [Do(v.name, "error", "zero") for v in pc.latent if not lengths[v.name]]
    together: tuple[Do, ...] = ()
    if all(lengths.values()):
        first = {v.name for v in pc.latent if not set(v.parents) & set(pc.names)}
        weights = {
            v: {"minus_error": 1.0} if v in first else {f"minus_part{k}": weight(steps, rate, k) for k in ks}
            for v, ks in lengths.items()
        }
        parts = [d for d in _parts(pc, lengths, "minus_part", "-clamp") if d.vertex not in first]
        parts += [_weighted_at_once(pc, v.name, lengths, steps, rate) for v in reversed(pc.latent) if v.name in first]
        together = tuple(sweep(pc, tuple(parts), weights))
    return Program(pc, "fixed-prediction", tuple(infer), tuple(learn(pc)), together, facts=facts)


def _weighted_at_once(pc: PCGraph, name: str, lengths: Mapping[str, Sequence[int]], steps: int, rate: float) -> Do:
    """The error of a vertex without parents among the vertices: nobody asks for its parts, so one product a child."""
    senders = {
        c.name: {f"minus_part{k}": weight(steps, rate, k + 1) for k in lengths[c.name] if k + 1 <= steps}
        for c in pc.children()[name]
    }
    return Do(name, "minus_error", "pull", carries=senders)


def _parts(pc: PCGraph, lengths: Mapping[str, Sequence[int]], slot: str, start: str) -> Iterator[Do]:
    """Every part, from the outputs backwards: what arrives over k edges is what the children have over k − 1."""
    children = pc.children()
    for name in pc.clamped:
        yield Do(name, f"{slot}0", start)
    for v in reversed(pc.latent):
        for k in lengths[v.name]:
            senders = {c.name: {f"{slot}{k - 1}": 1.0} for c in children[v.name] if k - 1 in lengths[c.name]}
            yield Do(v.name, f"{slot}{k}", "pull", carries=senders)


def _weighted(lengths: Sequence[int], steps: int, rate: float) -> str:
    weights = {k: weight(steps, rate, k) for k in lengths}
    return " + ".join(f"part{k}" if w == 1 else f"{w!r} * part{k}" for k, w in weights.items())


class DampedSweeps:
    """The law as a sum of exponentials on a graph, and its program.

    law: the weights of 0, 1, 2 … edges, four at least. tolerance: how far they may be from it. eps: the spacing of
    numbers at 1.
    """

    def __init__(self, pc: PCGraph, paths: PathLengths, law: Sequence[float], tolerance: float, eps: float) -> None:
        self.pc, self.tolerance, self.children = pc, tolerance, pc.children()
        last = max(k for k, w in enumerate(law) if abs(w) > tolerance)
        within = (1 << last + 1) - 1
        self.moving = {name for name, lengths in paths.sets.items() if lengths & within}
        self.sections: Sections = closest(law, tolerance, eps)

    @property
    def error(self) -> float:
        """How far a weight can be from the law's."""
        return self.sections.error

    @property
    def messages(self) -> int:
        """How many messages are sent from vertex to vertex."""
        sent = (c.name for v in self.pc.latent if v.name in self.moving for c in self.children[v.name])
        return 2 * len(self.sections.rows) * sum(c in self.moving for c in sent)

    def program(self, facts: tuple[str, ...]) -> Program:
        """The sweeps, two at a time: a section's value at a vertex, and the value that its parents are to have."""
        pc, sections = self.pc, self.sections
        sweeps: list[Do] = []
        for name in pc.clamped:
            sweeps += [Do(name, "wave", "start * error"), Do(name, "ahead", "start_ahead * error")]
        for v in reversed(pc.latent):
            if v.name in self.moving:
                senders = [c.name for c in self.children[v.name] if c.name in self.moving]
                ahead, wave = ({c: {slot: 1.0} for c in senders} for slot in ("ahead", "wave"))
                sweeps.append(Do(v.name, "wave", "pull", carries=ahead))
                sweeps.append(Do(v.name, "ahead", "node_sum * wave - node_product * pull", carries=wave))
                sweeps.append(Do(v.name, "error", "error + wave"))
        start = (*clamped(pc), *(Do(v.name, "error", "zero") for v in pc.latent))
        names = ("node_sum", "node_product", "start", "start_ahead")
        still = sum(v.name not in self.moving for v in pc.latent)
        facts = (
            *facts,
            f"{2 * len(sections.rows)} exponentials in place of the steps: their weights are those of the steps "
            f"up to {sections.fit:.1g}, and up to {sections.rounding:.1g} of rounding",
            *([f"{still} vertices keep error 0: their paths carry {self.tolerance:.1g} at most"] if still else []),
        )
        infer: tuple[Step, ...] = (*start, ForEach(names, sections.rows, tuple(sweeps)))
        tolerance = max(self.tolerance, sections.error)
        return Program(pc, "fixed-prediction", infer, tuple(learn(pc)), facts=facts, tolerance=tolerance)
