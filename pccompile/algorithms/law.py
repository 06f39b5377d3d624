"""The law of fixed-prediction inference: what a path of k edges carries after T steps of size η, on any graph.

The T-step error is a sum over paths from the output, weighted P[Binomial(T, η) ≥ k] by the path's length k. So the
gradient error of (T, η) is known before anything runs, and so is the T that a tolerance needs.
"""

from __future__ import annotations

from pccompile.diagnostics import CompileError
from pccompile.ir import PCGraph
from pccompile.ir.law import fewest, weight


def path_lengths(pc: PCGraph) -> dict[str, tuple[int, ...]]:
    """For each vertex, the distinct numbers of edges of its paths to the outputs, ascending."""
    children, clamped = pc.children(), set(pc.clamped)
    found: dict[str, tuple[int, ...]] = {}
    for v in reversed(pc.vertices):
        if v.name in clamped:
            found[v.name] = (0,)
        else:
            found[v.name] = tuple(sorted({k + 1 for c in children[v.name] for k in found[c.name]}))
    return found


def gradient_error(pc: PCGraph, steps: int, rate: float) -> float:
    """A bound on each parameter's relative gradient error: what is missing on the longest path."""
    return max(abs(1 - weight(steps, rate, k)) for ks in path_lengths(pc).values() for k in ks)


def steps_for(pc: PCGraph, rate: float, tolerance: float) -> int:
    """The fewest steps whose predicted gradient error is at most `tolerance`."""
    found = fewest(lambda steps: gradient_error(pc, steps, rate), tolerance)
    if found is None:
        raise CompileError(f"no number of steps reaches a tolerance of {tolerance:g} at rate {rate:g}")
    return found
