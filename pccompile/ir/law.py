"""The law of fixed-prediction inference: what a path of k edges carries after T steps of size η, on any graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable


@functools.cache
def weight(steps: int, rate: float, edges: int) -> float:
    """P[Binomial(steps, rate) ≥ edges], for rate in (0, 2): above 1 the same polynomial, no longer a probability."""
    if edges <= 0:
        return 1.0
    if edges > steps:
        return 0.0
    if rate == 1:
        return 1.0
    if rate < 1:
        logs = math.log(rate), math.log1p(-rate)

        def term(k: int) -> float:
            chosen = math.lgamma(steps + 1) - math.lgamma(k + 1) - math.lgamma(steps - k + 1)
            return math.exp(chosen + k * logs[0] + (steps - k) * logs[1])

        below, above = range(edges), range(edges, steps + 1)
        if edges <= rate * steps:
            return 1.0 - math.fsum(map(term, below))
        return math.fsum(map(term, above))
    return 1.0 - math.fsum(math.comb(steps, k) * rate**k * (1 - rate) ** (steps - k) for k in range(edges))


def fewest(error: Callable[[int], float], tolerance: float, limit: int = 2**24) -> int | None:
    """The fewest steps, 1 at least, whose error is at most `tolerance`; None where `limit` steps are not enough.

    error: falls with the steps.
    """
    high = 1
    while error(high) > tolerance:
        high *= 2
        if high > limit:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= tolerance else (middle, high)
    return high
