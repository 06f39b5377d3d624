"""The law of fixed-prediction inference: what a path of k edges carries after T steps of size η, on any graph.

The T-step error is a sum over paths from the output, weighted P[Binomial(T, η) ≥ k] by the path's length k. So the
gradient error of (T, η) is known before anything runs, and so is the T that a tolerance needs.
"""

from __future__ import annotations

import functools
import operator

from pccompile.diagnostics import CompileError
from pccompile.ir import PCGraph
from pccompile.ir.law import fewest, weight


class PathLengths:
    """For each vertex, the distinct numbers of edges of its paths to the outputs.

    A set of lengths is a number with a bit for each, since a deep network with shortcuts has as many as it has layers.
    """

    def __init__(self, pc: PCGraph) -> None:
        children, ends = pc.children(), set(pc.ends)
        self.sets: dict[str, int] = {}
        for v in reversed(pc.vertices):
            below = [self.sets[c.name] for c in children[v.name]]
            self.sets[v.name] = 1 if v.name in ends else functools.reduce(operator.or_, below, 0) << 1

    @property
    def all(self) -> int:
        """The lengths of all paths, as a set."""
        return functools.reduce(operator.or_, self.sets.values(), 0)

    @property
    def longest(self) -> int:
        """The edges of the longest path; 0 where there is none."""
        return max(self.all.bit_length() - 1, 0)

    def parts(self, steps: int) -> int:
        """How many lengths of at most `steps` the vertices have together."""
        within = (1 << steps + 1) - 1
        return sum((s & within).bit_count() for s in self.sets.values())


def lengths_in(set_: int) -> tuple[int, ...]:
    """The lengths in a set, ascending."""
    return tuple(k for k, bit in enumerate(reversed(bin(set_)[2:])) if bit == "1")


def path_lengths(pc: PCGraph) -> dict[str, tuple[int, ...]]:
    """For each vertex, the distinct numbers of edges of its paths to the outputs, ascending."""
    return {name: lengths_in(s) for name, s in PathLengths(pc).sets.items()}


def gradient_error(pc: PCGraph, steps: int, rate: float) -> float:
    """A bound on each parameter's relative gradient error: what is missing on the longest path."""
    return _missing(PathLengths(pc), steps, rate)


def _missing(paths: PathLengths, steps: int, rate: float) -> float:
    """What is missing on some path at most; a rate of at most 1 leaves out more the longer a path is."""
    lengths = (paths.longest,) if rate <= 1 else lengths_in(paths.all)
    return max(abs(1 - weight(steps, rate, k)) for k in lengths)


def steps_for(pc: PCGraph, rate: float, tolerance: float) -> int:
    """The fewest steps whose predicted gradient error is at most `tolerance`."""
    paths = PathLengths(pc)
    found = fewest(lambda steps: _missing(paths, steps, rate), tolerance)
    if found is None:
        raise CompileError(f"no number of steps reaches a tolerance of {tolerance:g} at rate {rate:g}")
    return found
