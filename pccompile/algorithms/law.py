"""The law of fixed-prediction inference: what a path of k edges carries after T steps of size η, on any graph.

The T-step error is a sum over paths from the output, weighted P[Binomial(T, η) ≥ k] by the path's length k. So the
gradient error of (T, η) is known before anything runs, and so is the T that a tolerance needs.
"""

from __future__ import annotations

import functools
import math

from pccompile.ir import PCGraph


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


def path_lengths(pc: PCGraph) -> dict[str, tuple[int, ...]]:
    """For each vertex, the distinct numbers of edges of its paths to the outputs, ascending."""
    children = pc.children()
    found: dict[str, tuple[int, ...]] = {}
    for v in reversed(pc.vertices):
        if v.name in pc.outputs:
            found[v.name] = (0,)
        else:
            found[v.name] = tuple(sorted({k + 1 for c in children[v.name] for k in found[c.name]}))
    return found


def gradient_error(pc: PCGraph, steps: int, rate: float) -> float:
    """A bound on each parameter's relative gradient error: what is missing on the longest path."""
    return max(abs(1 - weight(steps, rate, k)) for ks in path_lengths(pc).values() for k in ks)


def steps_for(pc: PCGraph, rate: float, tolerance: float) -> int:
    """The fewest steps whose predicted gradient error is at most `tolerance`."""
    high = 1
    while gradient_error(pc, high, rate) > tolerance:
        high *= 2
        if high > 2**24:
            from pccompile.diagnostics import CompileError

            raise CompileError(f"no number of steps reaches a tolerance of {tolerance:g} at rate {rate:g}")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if gradient_error(pc, middle, rate) <= tolerance else (middle, high)
    return high
