r"""Nudged inference: equilibrium propagation on the free energy of predictive coding (arXiv:2407.01163).

    relax F_β = Σ ½‖ε‖² + β L from the forward pass, then   ĝ = [g_θ(β) − g_θ(−β)] / 2β

One phase gives the gradient of backpropagation up to O(β), two phases of opposite sign up to O(β²). With β = 1, one
positive phase is strict inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pccompile.algorithms.common import each, energetic, learn, look, move, refuse_draws, sent, start
from pccompile.algorithms.rates import nudged_descent
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.ir import Do, PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How far a phase goes, how strongly the loss pulls, and which phases there are."""

    steps: int | Auto = setting(20, "a number of inference steps in each phase", least=0)
    rate: float | Auto = setting(0.1, "size of an inference step", above=0)
    nudge: float = setting(0.01, "weight of the loss, beta", above=0)
    phases: Literal["centred", "positive", "negative"] = setting("centred", "which signs of the nudge")


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """One phase or two, each from the forward pass. Raises CompileError for samples that move."""
    refuse_draws(pc)
    carries = sent(pc)
    infer: tuple[Step, ...] = each(pc.latent, "forward = prediction")
    if energetic(pc):
        infer = (*start(pc), *each(pc.latent, "forward = value"))
    if settings.phases == "centred":
        first = tuple(learn(pc, at="value", carries=carries, equation="-pull / (2 * nudge)"))
        infer += (*_phase(pc, "nudge * clamp"), *first, *_phase(pc, "-nudge * clamp"))
        last = "gradient + pull / (2 * nudge)"
    else:
        infer += _phase(pc, "nudge * clamp" if settings.phases == "positive" else "-nudge * clamp")
        last = "-pull / nudge" if settings.phases == "positive" else "pull / nudge"
    arguments = {"steps": resolved(settings.steps), "rate": resolved(settings.rate), "nudge": settings.nudge}
    learning: tuple[Do, ...] = tuple(learn(pc, at="value", carries=carries, equation=last))
    return Program(pc, "nudged", infer, learning, arguments=arguments, state="value")


def _phase(pc: PCGraph, clamp: str) -> tuple[Step, ...]:
    seen = look(pc, clamp)
    return (*each(pc.latent, "value = forward"), Repeat("steps", (*seen, *move(pc))), *seen)


ALGORITHM = Algorithm(
    "nudged",
    schedule,
    Settings,
    "arXiv:2407.01163",
    equals="backprop up to O(nudge²), at equilibrium",
    descends=False,
    energies="any",
    roles=True,
    automatic=nudged_descent,
    estimates=False,
    most_energy=lambda arguments, loss, entries: arguments["nudge"] * loss,  # F = ½‖ε‖² + β L starts there and falls
)
