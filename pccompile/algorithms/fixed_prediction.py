r"""Fixed-prediction inference: predictions and Jacobians stay at their feedforward values.

    ε_i ← ε_i + η (Σ_c J_ciᵀ ε_c − ε_i)          all vertices together, T times, from ε = 0 and a clamped output error

At the fixed point every error is minus the loss gradient of its value (Millidge, Tschantz & Buckley 2020,
arXiv:2006.04182). After T steps a path of k edges from the output carries the weight P[Binomial(T, η) ≥ k], which gives
several programs for the same result: `relax` takes the steps; `closed-form` splits each error by path length,
propagates each part once and weights it; `combinations` carries at each vertex the sums of parts that are independent
there; `exponentials` writes the law as a sum of some exponentials in k, and adds up as many sweeps, in each of which an
edge damps what it carries. The last two are the steps to within `lowering_tolerance`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.law import PathLengths, gradient_error, steps_for
from pccompile.algorithms.lowerings import Lowering, Lowerings
from pccompile.algorithms.record import Algorithm, Auto, setting
from pccompile.diagnostics import CompileError
from pccompile.ir import PCGraph, Program
from pccompile.ir.law import weight

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
        "take the steps, or evaluate them path length by path length, by independent combinations of these, or in "
        "damped sweeps; by default what has the fewest messages",
    )
    lowering_tolerance: float | None = setting(
        None,
        "how far combinations and exponentials may be from the steps, relative to backpropagation; by default as far "
        "as the type allows",
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
    lowerings = Lowerings(pc, paths, steps, rate, settings.lowering_tolerance)
    lowering, reasons = (settings.lowering, ()) if settings.lowering else lowerings.cheapest()
    return lowerings.program(lowering, (*facts, *reasons))


def _numbers(pc: PCGraph, settings: Settings, longest: int) -> tuple[int, float, tuple[str, ...]]:
    """Steps and rate, and why where they are automatic: at rate 1 the longest path is enough for backpropagation."""
    rate, why = (1.0, (ONE,)) if settings.rate == "auto" else (settings.rate, ())
    if settings.tolerance is not None:
        return steps_for(pc, rate, settings.tolerance), rate, why
    if settings.steps == "auto" or (settings.steps is None and settings.rate == "auto"):
        return max(longest, 1) if rate == 1 else steps_for(pc, rate, AUTOMATIC), rate, why
    return 100 if settings.steps is None else settings.steps, rate, why


ALGORITHM = Algorithm(
    "fixed-prediction",
    schedule,
    Settings,
    "arXiv:2006.04182",
    equals="backprop, path by path times the binomial law",
    needs_loss=False,
)
