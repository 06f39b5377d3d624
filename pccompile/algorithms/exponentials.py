"""The law of fixed-prediction inference as a sum of exponentials: w_k ≈ Σ_j c_j z_jᵏ, found when a model is compiled.

With N the operator that sends all messages once, the errors after T steps are Σ_k w_k Nᵏ ε_out, so with such a sum they
are Σ_j c_j (I − z_j N)⁻¹ ε_out: one backward sweep a node, whose messages are multiplied by z_j, however deep the graph
and however large T. Two nodes, conjugate or both real, make a second-order section as digital filters have them, which
needs no complex numbers: f_k = c₁z₁ᵏ + c₂z₂ᵏ obeys f_{k+1} = (z₁ + z₂) f_k − z₁z₂ f_{k−1}.

The nodes are those of a matrix pencil (Hua & Sarkar 1990), f_0 and f_1 a least-squares fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Row = tuple[float, float, float, float]

MOST_NODES = 24
WINDOW = 600
"""Path lengths that a fit looks at, since its time grows with their cube; it is judged by all."""


@dataclass(frozen=True)
class Sections:
    """Second-order sections whose sum is close to a law.

    rows: for each, z₁ + z₂, z₁z₂, f_0 and f_1. fit: the largest distance from the law. rounding: what one rounding of
    each of the numbers that are added up can come to. Both are relative to 1, the weight in backpropagation.
    """

    rows: tuple[Row, ...]
    fit: float
    rounding: float

    @property
    def error(self) -> float:
        """How far a weight can be from the law's."""
        return self.fit + self.rounding


def closest(law: Sequence[float], tolerance: float, eps: float) -> Sections:
    """The fewest sections within `tolerance` of `law`, the weights of 0, 1, 2 … edges; else the closest.

    law: four weights or more. eps: the spacing of numbers at 1.
    """
    weights = np.array(law)
    window = weights[:WINDOW]
    pencils = [_Pencil(window, backwards) for backwards in (False, True)]
    best = _judged(((0.0, 0.0, law[0], law[1]),), weights, eps)
    for count in range(1, MOST_NODES // 2 + 1):
        for nodes in (2 * count, 2 * count - 1):
            for pencil in pencils:
                found = _judged(_sections(pencil.nodes(nodes), window), weights, eps)
                if found.error < best.error:
                    best = found
        if best.error <= tolerance:
            break
    return best


class _Pencil:
    """The nodes of the best sums of exponentials for a sequence, or for it read from its end."""

    def __init__(self, sequence: Vector, backwards: bool) -> None:
        self.backwards = backwards
        sequence = sequence[::-1] if backwards else sequence
        half = len(sequence) // 2
        hankel = np.array([sequence[i : i + half + 1] for i in range(len(sequence) - half)])
        self.directions = np.linalg.svd(hankel, full_matrices=False)[2]

    def nodes(self, count: int) -> Complex:
        """`count` nodes; none where the sequence is too short for them."""
        directions = self.directions[:count]
        if count >= directions.shape[1] or count > len(directions):
            return np.zeros(0, complex)
        found: Complex = np.linalg.eigvals(directions[:, 1:] @ np.linalg.pinv(directions[:, :-1])).astype(complex)
        if not self.backwards:
            return found
        return 1 / found if np.all(found != 0) else np.zeros(0, complex)


def _sections(nodes: Complex, window: Vector) -> tuple[Row, ...]:
    """The sections of these nodes, with the starts that fit `window` best; none where they overflow."""
    pairs = [(float(2 * z.real), float(abs(z) ** 2)) for z in nodes if z.imag > 0]
    real = sorted(float(z.real) for z in nodes if z.imag == 0)
    pairs += [(y + z, y * z) for y, z in zip_longest(real[::2], real[1::2], fillvalue=0.0)]
    if not pairs:
        return ()
    node_sum, product = np.array(pairs).T
    with np.errstate(all="ignore"):
        starts = [(np.ones(len(pairs)), np.zeros(len(pairs))), (np.zeros(len(pairs)), np.ones(len(pairs)))]
        basis = np.concatenate([_responses(node_sum, product, f, g, len(window)) for f, g in starts], axis=1)
        scale = np.linalg.norm(basis, axis=0)
    if not np.isfinite(scale).all():
        return ()
    first, second = (np.linalg.lstsq(basis / scale, window, rcond=None)[0] / scale).reshape(2, -1).tolist()
    return tuple((*pair, f, g) for pair, f, g in zip(pairs, first, second, strict=True))


def _responses(node_sum: Vector, product: Vector, value: Vector, following: Vector, count: int) -> Vector:
    """What each section is for 0, 1, 2 … edges, `[count, sections]`."""
    found = np.empty((count, len(value)))
    for k in range(count):
        found[k] = value
        value, following = following, node_sum * following - product * value
    return found


def _judged(rows: tuple[Row, ...], law: Vector, eps: float) -> Sections:
    """Sections with how close they come."""
    if not rows:
        return Sections(rows, math.inf, math.inf)
    node_sum, product, first, second = np.array(rows).T
    with np.errstate(all="ignore"):
        parts = _responses(node_sum, product, first, second, len(law))
        fit = float(np.abs(parts.sum(1) - law).max())
        added = (np.abs(parts) * (1 + np.abs(product))).sum(1)
    return Sections(rows, fit, 0.5 * eps * float(added.max())) if math.isfinite(fit) else _judged((), law, eps)
