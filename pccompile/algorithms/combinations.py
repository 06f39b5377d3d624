r"""Fixed prediction with no more errors at a vertex than its paths leave independent.

If every path to a vertex were j edges longer, its error would be its error j edges ahead,

    ε_v(j) = Σ_k w_{j+k} · (what arrives over k edges),        ε_v(j) = Σ_c J_cvᵀ ε_c(j + 1),        ε_v = ε_v(0),

with w the law of path lengths. Over the lengths j that lie ahead of a vertex and the lengths k that lie behind it, the
weights are a Hankel matrix. Its rank is how many of the ε_v(j) are independent: these are carried, the others are
combinations of them. That is the least state of a linear system that differs from place to place (Dewilde & van der
Veen 1998); rows are chosen by pivoting, as in an interpolative decomposition (Cheng, Gimbutas, Martinsson & Rokhlin
2005). Near the outputs few lengths lie behind, near the inputs few lie ahead, and the law is smooth, so that a vertex
carries few, however deep the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pccompile.algorithms.law import PathLengths, lengths_in
from pccompile.ir import Do, PCGraph

Matrix = npt.NDArray[np.float64]
NEARLY = 4.0
"""A row that is carried at the children too is taken where the best one is not so many times as telling."""
COARSEST, FINER, TRIES = 4.0, 2.0, 24
"""Rows are told apart within so many tolerances at first; each time that errors add up to more than is tolerated, so
many times finer at least; so often."""


@dataclass(frozen=True)
class Pull:
    """What a vertex takes from one child: what it carries, in terms of what the child carries."""

    child: str
    matrix: Matrix

    @property
    def messages(self) -> int:
        """How many are sent: one for each that is carried at one end, whichever end carries fewer."""
        return min(int(np.count_nonzero(self.matrix.any(axis))) for axis in (0, 1))


@dataclass(frozen=True)
class Place:
    """What one vertex carries.

    behind, ahead: the path lengths to the outputs, and to the vertices whose error is wanted. carried: those lengths
    ahead whose errors are carried. express: `[ahead, carried]`, all errors by those. far: for each length behind, how
    far the weights of such a path in all those errors can be from the law's, as the root of the sum of squares.
    """

    behind: npt.NDArray[np.int64]
    ahead: npt.NDArray[np.int64]
    carried: tuple[int, ...] = ()
    express: Matrix = field(default_factory=lambda: np.zeros((0, 0)))
    far: Matrix = field(default_factory=lambda: np.zeros(0))
    pulls: tuple[Pull, ...] = ()

    @functools.cached_property
    def norm(self) -> Matrix:
        """What has, times a vector of that norm, the errors carried of a given root of the sum of squares ahead."""
        inverse: Matrix = np.linalg.inv(np.linalg.qr(self.express, mode="r"))
        return inverse

    def at(self, lengths: Iterable[int]) -> Matrix:
        """The errors so many edges ahead, `[lengths, carried]`; each length is one of `ahead`."""
        return self.express[np.searchsorted(self.ahead, np.array([*lengths], int))]

    def weights(self, law: Matrix, lengths: Iterable[int]) -> Matrix:
        """The law's weights, `[lengths, behind]`."""
        rows: Matrix = law[np.add.outer(np.array([*lengths], int), self.behind)]
        return rows


class Combinations:
    """The errors to carry at each vertex, so that those of `wanted` are the law's to within `tolerance`.

    law: the weights of 0, 1, 2 … edges, those of the longest path included. eps: the spacing of numbers at 1.
    error: how far a weight can be from the law's at most, one that is rounded included.
    """

    def __init__(
        self, pc: PCGraph, paths: PathLengths, law: Sequence[float], wanted: Iterable[str], tolerance: float, eps: float
    ) -> None:
        self.pc, self.law, self.eps, self.children = pc, np.array(law), eps, pc.children()
        self.wanted = frozenset(wanted)
        self.behind = {v: np.array(lengths_in(s)) for v, s in paths.sets.items()}
        self.ahead = {v: np.array(lengths_in(s)) for v, s in _ahead(pc, self.wanted).items()}
        self.places: dict[str, Place] = {}
        least = COARSEST * tolerance
        for _ in range(TRIES):
            self._choose(least)
            self.error = max((self._far(v) for v in self.wanted), default=0.0)
            if self.error <= tolerance:
                break
            least /= max(FINER, self.error / tolerance / COARSEST)

    @property
    def messages(self) -> int:
        """How many messages are sent from vertex to vertex."""
        return sum(pull.messages for place in self.places.values() for pull in place.pulls)

    @property
    def slots(self) -> tuple[tuple[str, str], ...]:
        """All that is carried: vertices with a name for each of their errors."""
        return tuple((v, slot(j)) for v, place in self.places.items() for j in place.carried)

    def _choose(self, least: float) -> None:
        """Fill `places`; weights below `least` do not count."""
        clamped = set(self.pc.clamped)
        for v in reversed(self.pc.vertices):
            place = Place(self.behind[v.name], self.ahead[v.name])
            if v.name in clamped:
                express = self.law[self.ahead[v.name]][:, None]
                self.places[v.name] = Place(place.behind, place.ahead, (0,), express, np.zeros(1))
            else:
                self.places[v.name] = self._place(v.name, place, least)

    def _place(self, name: str, empty: Place, least: float) -> Place:
        """What a vertex carries, given what its children carry."""
        children = {c.name: self.places[c.name] for c in self.children[name] if self.places[c.name].carried}
        if not children or not len(empty.ahead):
            return empty
        hankel = empty.weights(self.law, empty.ahead)
        there = np.array([all(j + 1 in c.carried for c in children.values()) for j in empty.ahead])
        rows, express = skeleton(hankel, least, there | (empty.ahead == 0))
        if not rows:
            return empty
        carried = tuple(int(empty.ahead[r]) for r in rows)
        pulls = tuple(self._pull(c, place, carried, least) for c, place in children.items())
        far = self._distances(name, empty, express, carried, pulls)
        return Place(empty.behind, empty.ahead, carried, express, far, pulls)

    def _pull(self, child: str, place: Place, carried: Sequence[int], least: float) -> Pull:
        """What a child gives to what a vertex carries, but for what does not count."""
        matrix = place.at(j + 1 for j in carried)
        counts = np.abs(matrix @ place.weights(self.law, place.carried)).max(axis=1) > least
        return Pull(child, matrix * counts[:, None])

    def _distances(
        self, name: str, place: Place, express: Matrix, carried: Sequence[int], pulls: Sequence[Pull]
    ) -> Matrix:
        """`far` of a vertex: the largest over the children that a path can come by."""
        own = np.linalg.qr(express, mode="r")
        far = np.zeros(len(place.behind))
        for silent in (c for c in self.children[name] if not self.places[c.name].carried):
            here = np.searchsorted(place.behind, self.behind[silent.name] + 1)
            far[here] = np.linalg.norm(own @ place.weights(self.law, carried)[:, here], axis=0)
        for pull in pulls:
            child = self.places[pull.child]
            weights = child.weights(self.law, child.carried)
            here = np.searchsorted(place.behind, child.behind + 1)
            off = pull.matrix @ weights - place.weights(self.law, carried)[:, here]
            mixed = np.abs(pull.matrix)
            rounded = self.eps * mixed @ np.abs(weights) * (np.count_nonzero(mixed, axis=1) > 1)[:, None]
            growth = float(np.linalg.norm(own @ pull.matrix @ child.norm, 2))
            new = np.linalg.norm(own @ off, axis=0) + np.linalg.norm(np.abs(own) @ rounded, axis=0) + growth * child.far
            far[here] = np.maximum(far[here], new)
        return far

    def _far(self, name: str) -> float:
        """How far the weight of a path in a vertex's error can be from the law's."""
        place = self.places[name]
        wanted = place.weights(self.law, (0,))
        if not place.carried:
            return float(np.abs(wanted).max(initial=0.0))
        by = place.at((0,))
        off = np.abs(by @ place.weights(self.law, place.carried) - wanted)
        return float((off + np.linalg.norm(by @ place.norm) * place.far).max(initial=0.0))

    def steps(self, sign: str = "") -> Iterator[Do]:
        """All that is carried, from the outputs backwards. sign: "minus_" where the outputs' errors are negated."""
        clamped = set(self.pc.clamped)
        for v in reversed(self.pc.vertices):
            if v.name in clamped:
                yield Do(v.name, slot(0, sign), "-clamp" if sign else "clamp")
            else:
                yield from self._vertex(v.name, sign)

    def _vertex(self, name: str, sign: str) -> Iterator[Do]:
        place = self.places[name]
        for i, j in enumerate(place.carried):
            rows = {p.child: _nonzero(self.places[p.child].carried, p.matrix[i], sign) for p in place.pulls}
            yield Do(name, slot(j, sign), "pull", carries={child: row for child, row in rows.items() if row})
        if 0 not in place.carried and name in self.wanted:
            weights = _nonzero(place.carried, place.at((0,))[0], sign) if place.carried else {}
            yield Do(name, slot(0, sign), " + ".join(f"{w!r} * {s}" for s, w in weights.items()) or "zero")


def slot(ahead: int, sign: str = "") -> str:
    """What the error so many edges ahead is called."""
    return f"{sign}ahead{ahead}" if ahead else f"{sign}error"


def _nonzero(carried: Sequence[int], weights: Matrix, sign: str) -> dict[str, float]:
    return {slot(j, sign): float(w) for j, w in zip(carried, weights, strict=True) if w}


def _ahead(pc: PCGraph, wanted: frozenset[str]) -> dict[str, int]:
    """For each vertex, the set of numbers of edges of its paths towards the inputs that end in a wanted vertex."""
    lengths: dict[str, int] = {}
    for v in pc.vertices:
        lengths[v.name] = int(v.name in wanted)
        for p in v.parents:
            lengths[v.name] |= lengths.get(p, 0) << 1
    return lengths


def skeleton(matrix: Matrix, least: float, preferred: npt.NDArray[np.bool_]) -> tuple[list[int], Matrix]:
    """Rows of which all are combinations, and these, but for remainders of at most about `least`.

    preferred: rows that are taken where they are nearly as good as the best one.
    """
    size = np.abs(matrix)
    rows, columns = (np.flatnonzero(size.max(axis=axis, initial=0.0) > least / 16) for axis in (1, 0))
    part = matrix[np.ix_(rows, columns)]
    rest, chosen = part.copy(), list[int]()
    while len(chosen) < min(part.shape):
        left = np.abs(rest).max(axis=1)
        if left.max() <= least:
            break
        row = int((left * np.where(preferred[rows], NEARLY, 1.0)).argmax())
        column = int(np.abs(rest[row]).argmax())
        rest -= np.outer(rest[:, column], rest[row] / rest[row, column])
        chosen.append(row)
        rest[chosen] = 0.0
    if not chosen:
        return [], np.zeros((len(matrix), 0))
    by = np.linalg.lstsq(part[chosen].T, part.T, rcond=None)[0].T
    by[np.abs(by) < np.finfo(float).eps] = 0.0
    by[chosen] = np.eye(len(chosen))
    express = np.zeros((len(matrix), len(chosen)))
    express[rows] = by
    return [int(rows[i]) for i in chosen], express
