r"""Fixed-prediction inference: predictions and Jacobians stay at their feedforward values.

    ε_i ← ε_i + η (Σ_c J_ciᵀ ε_c − ε_i)          all vertices together, T times, from ε = 0 and a clamped output error

At the fixed point every error is minus the loss gradient of its value (Millidge, Tschantz & Buckley 2020,
arXiv:2006.04182). After T steps a path of k edges from the output carries the weight P[Binomial(T, η) ≥ k], which gives
two programs for the same result: `relax` takes the steps, `closed-form` splits each error by path length, propagates
each part once and weights it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pccompile.algorithms.common import clamped, learn, sweep
from pccompile.algorithms.law import PathLengths, gradient_error, path_lengths, steps_for
from pccompile.algorithms.record import Algorithm, Auto, setting
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, PCGraph, Program, Repeat
from pccompile.ir.law import weight

MOST_PARTS = 3000
"""The longest closed form that is chosen by itself: each part is a few lines of the generated file."""

AUTOMATIC = 1e-3
"""The predicted gradient error of automatic steps, where the rate is given."""
ONE = "rate 1 was chosen: all between 0 and 2 converge, and this one in as many steps as the longest path has edges"


@dataclass(frozen=True)
class Settings:
    """How far inference goes, and in which of the two forms. With neither steps nor a tolerance, 100 steps."""

    steps: int | Auto | None = setting(None, "a number of inference steps", least=0)
    rate: float | Auto = setting(0.1, "size of an inference step; it converges for rates", above=0, below=2)
    tolerance: float | None = setting(None, "as many steps as this relative gradient error needs", above=0)
    lowering: Literal["closed-form", "relax"] | None = setting(
        None, "evaluate the steps, or take them; by default the former unless its program would be very long"
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
    parts = paths.parts(steps)
    if lowering is None and parts > MOST_PARTS:
        facts = (*facts, f"relaxed step by step: the closed form would have {parts} parts")
    elif lowering in (None, "closed-form"):
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
