"""The forms in which fixed prediction can be evaluated: what each costs, how close it comes, and its program."""

from __future__ import annotations

import functools
from typing import Literal

import torch

from pccompile.algorithms.closed_form import closed_form
from pccompile.algorithms.combinations import Combinations
from pccompile.algorithms.common import clamped, learn, learners, sweep
from pccompile.algorithms.damped_sweeps import DampedSweeps
from pccompile.algorithms.exponentials import MOST_NODES
from pccompile.algorithms.law import PathLengths
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, PCGraph, Program, Repeat, Step
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
