"""How fast inference approaches its end: what one step leaves of a mode, for each way of stepping.

A mode of eigenvalue λ is multiplied in each step by the roots z of

    euler        z = 1 − ηλ
    heun         z = 1 − ηλ + (ηλ)² / 2
    heavy-ball   z² − (1 + m − ηλ) z + m = 0
    nesterov     z² − (1 + m)(1 − ηλ) z + m (1 − ηλ) = 0
    alm          z² − (2 − η(p + αg)) z + 1 − ηp = 0,   p = (ρ + λ_min(S)) g,  g = σ²(A)   (arXiv:2605.31022)
"""

from __future__ import annotations

import cmath


def left(stepper: str, x: float, mass: float = 0.0) -> float | None:
    """What a step leaves of a mode with x = ηλ, by the stepper's name; None for one that is not linear (adam)."""
    match stepper:
        case "euler":
            return abs(1 - x)
        case "heun":
            return abs(1 - x + x * x / 2)
        case "heavy-ball":
            return _larger_root(1 + mass - x, mass)
        case "nesterov":
            return _larger_root((1 + mass) * (1 - x), mass * (1 - x))
    return None


def left_by_multipliers(rate: float, penalty: float, dual_rate: float, curvature: float, stiffness: float) -> float:
    """What a step of PC-ALM leaves of a mode with g = stiffness, where the loss has this curvature."""
    p = (penalty + curvature) * stiffness
    return _larger_root(2 - rate * (p + dual_rate * stiffness), 1 - rate * p)


def _larger_root(sum_: float, product: float) -> float:
    """The larger absolute value of the roots of z² − sum·z + product."""
    root = cmath.sqrt(sum_ * sum_ - 4 * product)
    return max(abs(sum_ + root), abs(sum_ - root)) / 2
