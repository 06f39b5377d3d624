r"""PC-ALM: each error unit keeps a multiplier, and inference ends at the exact gradient (Seely & Gould 2026).

    v_i ← v_i + η (Σ_c J_ci(v)ᵀ c_c − c_i),   c_i = λ_i + ρ ε_i,   λ_i ← λ_i + α ε_i,   c = −∂L/∂v̂ at an output

The saddle point of L + Σ λᵀε + ρ/2 ‖ε‖² has ε = 0 and λ_i = −∂L/∂v̂_i, whatever the graph (arXiv:2605.31022). The
multiplier moves on the error of the values that have just moved, at the top of the next turn; the first turn sees 0.
With α = 0 and ρ = 1 this is strict inference.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import EULER, each, learn, look, refuse_draws, sent, start
from pccompile.algorithms.rates import saddle
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.ir import PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How far inference goes, how stiff errors are and how fast the multipliers follow them."""

    steps: int | Auto = setting(100, "a number of inference steps; news from a loss needs one for each layer", least=0)
    rate: float | Auto = setting(0.1, "size of an inference step, eta", above=0)
    penalty: float | Auto = setting(
        1.0, "weight of the squared error, rho: stable where it exceeds -lambda_min(S)", above=0
    )
    dual_rate: float | None = setting(None, "step of the multipliers, alpha; by default the penalty", least=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Saddle-point dynamics over values and multipliers. Raises CompileError for samples that move."""
    refuse_draws(pc)
    dual = each(pc.predicted, "dual = dual + dual_rate * error")
    credit = (*each(pc.ends, f"credit = {sent(pc)}"), *each(pc.latent, f"credit = dual + penalty * {sent(pc)}"))
    force = each(pc.latent, "force = pull - credit", at="value", carries="credit")
    body: tuple[Step, ...] = (*look(pc), *dual, *credit, *force, *each(pc.latent, EULER))
    infer: tuple[Step, ...] = (*start(pc), *each(pc.latent, "dual = zero"), Repeat("steps", body), *look(pc), *credit)
    penalty = resolved(settings.penalty)
    dual_rate = penalty if settings.dual_rate is None else settings.dual_rate
    arguments = {"steps": resolved(settings.steps), "rate": resolved(settings.rate)}
    arguments |= {"penalty": penalty, "dual_rate": dual_rate}
    learning = tuple(learn(pc, at="value", carries="credit"))
    return Program(pc, "alm", infer, learning, arguments=arguments, state="value")


ALGORITHM = Algorithm(
    "alm",
    schedule,
    Settings,
    "arXiv:2605.31022",
    equals="backprop, where it has converged",
    descends=False,
    energies="of the error",
    roles=True,
    automatic=saddle,
    estimates=False,
    most_energy=lambda arguments, loss, entries: loss / arguments["penalty"],  # L + ρ/2 ‖ε‖² starts at the loss
)
