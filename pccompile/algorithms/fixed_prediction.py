r"""Fixed-prediction inference: predictions and Jacobians stay at their feedforward values.

    ε_i ← ε_i + η (Σ_c J_ciᵀ ε_c − ε_i)          all vertices together, T times, from ε = 0 and a clamped output error

At the fixed point every error is minus the loss gradient of its value (Millidge, Tschantz & Buckley 2020,
arXiv:2006.04182). After T steps a path of k edges from the output carries the weight P[Binomial(T, η) ≥ k], which gives
three programs for the same result: `relax` takes the steps; `closed-form` splits each error by path length, propagates
each part once and weights it; `exponentials` writes the law as a sum of some exponentials in k, and adds up as many
sweeps, in each of which an edge damps what it carries: their number depends on T, η and `lowering_tolerance` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pccompile.algorithms.common import clamped, learn, sweep
from pccompile.algorithms.exponentials import MOST_NODES, Sections, closest
from pccompile.algorithms.law import PathLengths, gradient_error, path_lengths, steps_for
from pccompile.algorithms.record import Algorithm, Auto, setting
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, ForEach, PCGraph, Program, Repeat, Step
from pccompile.ir.law import weight

Lowering = Literal["closed-form", "relax", "exponentials"]
MOST_PARTS = 3000
"""The longest closed form that is chosen by itself: each part is a few lines of the generated file."""
FINEST, ROUNDINGS, COARSEST = 1e-9, 256, 1e-3
"""How close exponentials are to come by default: as many roundings of the type, within these bounds."""

AUTOMATIC = 1e-3
"""The predicted gradient error of automatic steps, where the rate is given."""
ONE = "rate 1 was chosen: all between 0 and 2 converge, and this one in as many steps as the longest path has edges"


@dataclass(frozen=True)
class Settings:
    """How far inference goes, and in which form. With neither steps nor a tolerance, 100 steps."""

    steps: int | Auto | None = setting(None, "a number of inference steps", least=0)
    rate: float | Auto = setting(0.1, "size of an inference step; it converges for rates", above=0, below=2)
    tolerance: float | None = setting(None, "as many steps as this relative gradient error needs", above=0)
    lowering: Lowering | None = setting(
        None,
        "take the steps, or evaluate them path length by path length (the default where short) or in damped sweeps",
    )
    lowering_tolerance: float | None = setting(
        None,
        "how far exponentials may be from the steps, relative to backpropagation; by default as far as the type allows",
        above=0,
        below=1,
    )

    def __post_init__(self) -> None:
        if self.steps is not None and self.tolerance is not None:
            hint = "tolerance chooses the steps: give one of them"
            raise CompileError("steps and tolerance are both given", hint=hint)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Inference as `settings` say."""
    paths, lowering = PathLengths(pc), settings.lowering
    longest = paths.longest
    steps, rate, why = _numbers(pc, settings, longest)
    facts: tuple[str, ...] = (
        *why,
        f"{steps} steps of size {rate:g}: predicted gradient error {gradient_error(pc, steps, rate):.3g} "
        f"(what is missing on the longest path, {longest} edges, which carries {weight(steps, rate, longest):.4g})",
    )
    waves = None
    if lowering == "exponentials" or (lowering is None and paths.parts(steps) > MOST_PARTS):
        waves = _Waves(pc, paths, steps, rate, settings.lowering_tolerance)
        if lowering == "exponentials":
            waves.refuse_if_far()
    if lowering is None:
        lowering, reason = _cheapest(paths.parts(steps), steps * len(pc.latent), waves)
        facts = (*facts, *reason)
    if lowering == "exponentials" and waves:
        return waves.program(facts)
    if lowering == "closed-form":
        return _closed_form(pc, steps, rate, facts)
    start = (*clamped(pc), *(Do(v.name, "error", "zero") for v in pc.latent))
    relax = tuple(Do(v.name, "error", "error + rate * (pull - error)") for v in pc.latent)
    arguments = {"steps": steps, "rate": rate}
    return Program(
        pc, "fixed-prediction", (*start, Repeat("steps", relax)), tuple(learn(pc)), arguments=arguments, facts=facts
    )


def _numbers(pc: PCGraph, settings: Settings, longest: int) -> tuple[int, float, tuple[str, ...]]:
    """Steps and rate, and why where they are automatic: at rate 1 the longest path is enough for backpropagation."""
    rate, why = (1.0, (ONE,)) if settings.rate == "auto" else (settings.rate, ())
    if settings.tolerance is not None:
        return steps_for(pc, rate, settings.tolerance), rate, why
    if settings.steps == "auto" or (settings.steps is None and settings.rate == "auto"):
        return max(longest, 1) if rate == 1 else steps_for(pc, rate, AUTOMATIC), rate, why
    return 100 if settings.steps is None else settings.steps, rate, why


def _cheapest(parts: int, moves: int, waves: _Waves | None) -> tuple[Lowering, tuple[str, ...]]:
    """The closed form, which is exact, unless it is too long; then what has fewer sums of messages, and why.

    parts, moves: how many sums the closed form and the steps have.
    """
    if parts <= MOST_PARTS:
        return "closed-form", ()
    if waves and waves.close and waves.sums < moves:
        return "exponentials", ()
    return "relax", (f"relaxed step by step: the closed form would have {parts} parts",)


class _Waves:
    """The law as a sum of exponentials on a graph, and its program."""

    def __init__(self, pc: PCGraph, paths: PathLengths, steps: int, rate: float, tolerance: float | None) -> None:
        self.pc, self.steps, self.rate = pc, steps, rate
        kinds = [v.type.dtype for v in pc.vertices if v.type.dtype.is_floating_point or v.type.dtype.is_complex]
        self.kind = max(kinds, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)
        eps = torch.finfo(self.kind).eps
        self.tolerance = tolerance or min(max(FINEST, ROUNDINGS * eps), COARSEST)
        law = [weight(steps, rate, k) for k in range(max(paths.longest + 1 + (paths.longest + 1) % 2, 4))]
        last = max(k for k, w in enumerate(law) if abs(w) > self.tolerance)
        within = (1 << last + 1) - 1
        self.moving = {name for name, lengths in paths.sets.items() if lengths & within}
        self.sections: Sections = closest(law, self.tolerance, eps)

    @property
    def close(self) -> bool:
        """Whether the sum is as close to the law as it is to be."""
        return self.sections.error <= self.tolerance

    @property
    def sums(self) -> int:
        """How many sums of messages the program has."""
        return 2 * len(self.sections.rows) * len(self.moving)

    def refuse_if_far(self) -> None:
        """Raise CompileError unless the sum is close to the law."""
        if not self.close:
            steps = f"{self.steps} steps of size {self.rate:g} in {str(self.kind).removeprefix('torch.')}"
            hint = f"leave the lowering open, or take a lowering_tolerance above {self.sections.error:.2g}"
            raise CompileError(f"no {MOST_NODES} exponentials come within {self.tolerance:.2g} of {steps}", hint=hint)

    def program(self, facts: tuple[str, ...]) -> Program:
        """The sweeps, two at a time: a section's value at a vertex, and the value that its parents are to have."""
        pc, sections, children = self.pc, self.sections, self.pc.children()
        sweeps: list[Do] = []
        for name in pc.clamped:
            sweeps += [Do(name, "wave", "start * error"), Do(name, "ahead", "start_ahead * error")]
        for v in reversed(pc.latent):
            if v.name in self.moving:
                senders = [c.name for c in children[v.name] if c.name in self.moving]
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
        return Program(
            pc, "fixed-prediction", infer, tuple(learn(pc)), facts=facts, tolerance=max(self.tolerance, sections.error)
        )


def _closed_form(pc: PCGraph, steps: int, rate: float, facts: tuple[str, ...]) -> Program:
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


ALGORITHM = Algorithm(
    "fixed-prediction",
    schedule,
    Settings,
    "arXiv:2006.04182",
    equals="backprop, path by path times the binomial law",
    needs_loss=False,
)
