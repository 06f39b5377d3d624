"""Rates and steps that follow from the spectrum of a batch: what an algorithm's `automatic` is made of.

Bounds hold near the forward pass, and curvature moves along a run, so each rate is half of its bound. While weights
learn the bound moves as well: a rate is chosen anew when it is above three quarters of it.
"""

from __future__ import annotations

import math
from typing import Any

from pccompile.algorithms.bounds import Bounds
from pccompile.algorithms.record import Choice

RELAXED, CONVERGED = 1e-3, 1e-8
"""What inference leaves of its slowest mode: where its equilibrium is what counts, and where an exact gradient does."""
MOST_STEPS = 1000
MOST_CONVERGING_STEPS = 20_000
"""The most steps that are chosen, in the two cases."""
NEAR = 1.5
"""So many times half of the bound is too near to it."""
STILL = "no hidden vertex moves: any will do"


def descent(settings: Any, bounds: Bounds) -> tuple[Choice, ...]:
    """Gradient descent on the free energy over the values: η = 1 / λ_max(H), (1 + m) / λ_max(H) with momentum m."""
    if bounds.empty:
        return _still(settings)
    m = getattr(settings, "mass", 0.0)
    momentum = {"heavy-ball": 1 + m, "nesterov": (1 + m) / (1 + 2 * m)}
    factor = momentum.get(getattr(settings, "stepper", ""), 1.0)
    return _descent(settings, bounds, 1.0, factor)


def nudged_descent(settings: Any, bounds: Bounds) -> tuple[Choice, ...]:
    """The same with the loss weighted by the nudge β, in both phases; it holds where β ‖S‖ < 1."""
    if bounds.empty:
        return _still(settings)
    choices = _descent(settings, bounds, settings.nudge, 1.0)
    strength = settings.nudge * bounds.curvature().norm
    if strength < 1 or settings.phases == "positive":
        return choices
    warning = f"; nudge ‖S‖ = {strength:.3g}, and from 1 on a negative phase diverges"
    return tuple(c._replace(reason=c.reason + warning) for c in choices)


def _descent(settings: Any, bounds: Bounds, nudge: float, factor: float) -> tuple[Choice, ...]:
    choices, rate = [], settings.rate
    if rate == "auto":
        hessian = bounds.hessian(nudge)
        rate = factor / hessian.value
        bound = "2 / λmax(H)" if factor == 1 else f"{2 * factor:.3g} / λmax(H)"
        choices.append(Choice("rate", rate, f"half of {bound}, λmax(H) = {hessian}", NEAR * rate))
    if settings.steps == "auto":
        slow = bounds.softness()
        choices.append(_steps(bounds, _number(rate) * slow.value, f"σmin(A)² = {slow}"))
    return tuple(choices)


def sampling(settings: Any, bounds: Bounds) -> tuple[Choice, ...]:
    """Langevin: the rate as for a descent, and samples over ten relaxation times of the slowest mode."""
    if bounds.empty:
        return _still(settings)
    return _descent(settings, bounds, 1.0, 1.0)


def by_curvature(settings: Any, bounds: Bounds) -> tuple[Choice, ...]:
    """Error optimization: η = 1 / λ_max(I + S), and as many steps as its slowest mode, 1 + λ_min(S), needs."""
    if bounds.empty:
        return _still(settings)
    choices, rate, ends = [], settings.rate, bounds.curvature()
    if rate == "auto":
        rate = 1 / (1 + max(ends.high.value, 0.0))
        choices.append(Choice("rate", rate, f"half of 2 / λmax(I + S), λmax(S) = {ends.high}", NEAR * rate))
    if settings.steps == "auto":
        choices.append(_steps(bounds, rate * (1 + min(ends.low.value, 0.0)), f"λmin(S) = {ends.low}"))
    return tuple(choices)


def saddle(settings: Any, bounds: Bounds) -> tuple[Choice, ...]:
    r"""PC-ALM: ρ = 2 ‖S‖ and η = 0.9 · 4 / ((2 (ρ + ‖S‖) + α) ‖A‖²), which is 0.9 / (ρ ‖A‖²) where α = ρ.

    λ_max(K_ρ) ≤ (ρ + ‖S‖) ‖A‖² keeps that below the bound 4 / (2 λ_max(K_ρ) + α ‖A‖²). The slowest mode shrinks by
    √(1 − η (ρ + λ_min(S)) σ_min(A)²) a step.
    """
    if bounds.empty:
        return _still(settings)
    choices, penalty, rate, ends = list[Choice](), settings.penalty, settings.rate, bounds.curvature()
    if penalty == "auto":
        penalty = 2 * ends.norm if ends.norm > 0 else 1.0
        choices.append(Choice("penalty", penalty, f"2 ‖S‖, S from {ends.low} to {ends.high}"))
    dual = penalty if settings.dual_rate is None else settings.dual_rate
    if rate == "auto":
        stiffness = bounds.stiffness()
        rate = 3.6 / ((2 * (penalty + ends.norm) + dual) * stiffness.value)
        reason, limit = f"0.9 of its bound, ‖A‖² = {stiffness}, ‖S‖ = {ends.norm:.4g}", rate / 0.9
        if penalty <= -ends.low.value:
            least = -ends.low.value
            reason += f"; a penalty of {penalty:.3g} does not exceed -λmin(S) = {least:.3g}: penalty auto does"
            limit = 0.0
        choices.append(Choice("rate", rate, reason, limit))
    if settings.steps == "auto":
        slow = bounds.softness()
        decay = 0.5 * rate * (penalty + min(ends.low.value, 0.0)) * slow.value
        reason = f"κ(A) = {bounds.condition:.3g}, λmin(S) = {ends.low}"
        choices.append(_steps(bounds, decay, reason, CONVERGED, MOST_CONVERGING_STEPS))
    return tuple(choices)


def _steps(bounds: Bounds, decay: float, why: str, left: float = RELAXED, most: int = MOST_STEPS) -> Choice:
    """As many steps as leave this part of a mode that shrinks by exp(−decay) in each; the longest path at least."""
    wanted = math.log(1 / left) / decay if decay > 0 else math.inf
    steps = max(math.ceil(min(wanted, most)), bounds.longest)
    reason = f"they leave {left:g} of the slowest mode, {why}"
    if not wanted <= most:
        needed = f"{wanted:.3g} steps" if math.isfinite(wanted) else "more steps than can be told"
        reason = f"the most that are chosen; {needed} would leave {left:g} of the slowest mode, {why}"
    return Choice("steps", steps, reason, paced=left == RELAXED)


def _number(rate: Any) -> float:
    """A rate, or the smallest of a table of rates."""
    return float(min(rate.values(), default=1.0)) if hasattr(rate, "values") else float(rate)


def _still(settings: Any) -> tuple[Choice, ...]:
    defaults = {"rate": 1.0, "penalty": 1.0, "steps": 1}
    return tuple(Choice(k, v, STILL) for k, v in defaults.items() if getattr(settings, k, None) == "auto")
