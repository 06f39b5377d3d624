r"""The operators that decide how fast inference may go, measured on the compiled rules without autograd.

    A = ∂ε/∂v     among hidden vertices, unit triangular     κ(A) = σ_max / σ_min says how long inference takes
    H = ∂²F/∂v²   of strict inference                        strict steps converge below 2 / λ_max(H)
    S = ∂²ℓ/∂δ²   of the loss, δ added to each prediction    error optimization converges below 2 / λ_max(I + S)

All are taken at the forward pass of one batch. They are block-diagonal over its samples, unless the model itself
couples them, so the extremes are those of the most extreme sample. H and S may have negative eigenvalues where the
network is curved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Vector = Mapping[str, Tensor]
"""A tensor for each hidden vertex."""
FEWEST_STEPS, MOST_STEPS = 10, 40
"""Lanczos steps. A few stand still at the extreme of one sample where another has one slightly further out."""
ACCURACY = 0.02
"""A measurement ends where its estimated error is this part of it."""
CHANCE = 0.2
"""The part of a random vector in a start that has been found before."""
SURE = 0.1
"""A smallest eigenvalue is believed up to this part of itself."""


class Operators(Protocol):
    """One batch, to be displaced: what the generated functions give for an offset of every hidden vertex."""

    start: Vector
    """The hidden values of the forward pass."""
    longest: int
    """The edges of the longest path to an output."""

    def forces(self, offset: Vector, nudge: float) -> tuple[Vector, Vector]:
        """The hidden errors, and −∂F/∂v."""

    def forward_sweep(self, offset: Vector) -> Vector:
        """The hidden values of a sweep that adds the offset to each prediction."""

    def loss_gradients(self, offset: Vector) -> Vector:
        """−∂ℓ/∂δ at that offset δ."""

    def adjoint(self, offset: Vector) -> Vector:
        """Aᵀ times the offset."""

    def inverse_adjoint(self, offset: Vector) -> Vector:
        """A⁻ᵀ times the offset."""


@dataclass(frozen=True)
class Measured:
    """An eigenvalue with the estimate of its error, and the sweeps over the network that it took."""

    value: float
    error: float
    sweeps: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.1g}"


@dataclass(frozen=True)
class Ends:
    """The smallest and the largest eigenvalue of a symmetric operator."""

    low: Measured
    high: Measured
    direction: Tensor | None = field(default=None, compare=False, repr=False)
    """A flat vector along both eigenvectors, from which Lanczos steps find them again when weights have moved."""

    @property
    def both(self) -> tuple[Measured, Measured]:
        """The two ends, the smallest first."""
        return self.low, self.high

    @property
    def norm(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low.value), abs(self.high.value))


def lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, cost: int, both: bool = False, most: int = MOST_STEPS
) -> Ends:
    """The extreme eigenvalues of a symmetric operator on flat vectors, by Lanczos steps from `start`.

    cost: sweeps that `apply` takes. both: go on until the lower end is as certain as the upper one; otherwise it is
    a by-product. most: the most steps. Vectors are kept orthogonal to all before them. An eigenvalue's error is
    estimated from its residual r as min(r, r² / gap), or as what the last two steps changed where that is more.
    """
    basis, diagonal, beside = [start / start.norm()], list[float](), list[float]()
    seen: list[Ends] = []
    while True:
        image = apply(basis[-1])
        diagonal.append(float(torch.dot(image, basis[-1])))
        for _ in range(2):
            image = image - sum(torch.dot(image, q) * q for q in basis)
        rest = float(image.norm())
        seen.append(_ritz(diagonal, beside, rest, cost))
        low, high = (_unsettled(end, before) for end, before in zip(seen[-1].both, seen[-3:][0].both, strict=True))
        scale = max(abs(low.value), abs(high.value))
        sure = high.error <= ACCURACY * scale and (not both or low.error <= ACCURACY * scale)
        exhausted = len(diagonal) >= min(most, len(start)) or not rest > 1e-5 * scale
        if exhausted or not math.isfinite(scale) or (sure and len(diagonal) >= FEWEST_STEPS):
            low, high = seen[-1].both if exhausted and len(diagonal) < most else (low, high)
            return Ends(low, high, _direction(basis, diagonal, beside) if math.isfinite(scale) else None)
        beside.append(rest)
        basis.append(image / rest)


def _unsettled(now: Measured, before: Measured) -> Measured:
    return Measured(now.value, max(now.error, abs(now.value - before.value)), now.sweeps)


def _ritz(diagonal: list[float], beside: list[float], rest: float, cost: int) -> Ends:
    """Both ends of the tridiagonal matrix so far."""
    sweeps = cost * len(diagonal)
    if not all(map(math.isfinite, (*diagonal, rest))):
        unknown = Measured(math.nan, math.nan, sweeps)
        return Ends(unknown, unknown)
    values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
    residuals = (rest * vectors[-1]).abs().tolist()
    ends = values.tolist()
    gaps = (ends[1] - ends[0], ends[-1] - ends[-2]) if len(ends) > 1 else (0.0, 0.0)

    def measured(index: int, gap: float) -> Measured:
        residual = residuals[index]
        return Measured(ends[index], min(residual, residual**2 / gap) if gap > 0 else residual, sweeps)

    return Ends(measured(0, gaps[0]), measured(-1, gaps[1]))


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for i, b in enumerate(beside):
        matrix[i, i + 1] = matrix[i + 1, i] = b
    return matrix


def _direction(basis: Sequence[Tensor], diagonal: Sequence[float], beside: Sequence[float]) -> Tensor:
    """The sum of the lowest and the highest Ritz vector."""
    vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside)).eigenvectors
    return torch.mv(torch.stack(list(basis), 1), (vectors[:, 0] + vectors[:, -1]).to(basis[0]))


@dataclass
class Spectrum:
    """What has been measured on one batch; each number is taken when it is first asked for.

    starts: directions that were found when weights were a little different. most: the most Lanczos steps.
    """

    operators: Operators
    seed: int = 0
    starts: Mapping[object, Tensor] = field(default_factory=dict)
    most: int = MOST_STEPS
    _known: dict[object, Ends] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is no hidden vertex, and so nothing that inference could move."""
        return not self.operators.start

    @property
    def directions(self) -> dict[object, Tensor]:
        """What a later measurement can start from."""
        return {name: ends.direction for name, ends in self._known.items() if ends.direction is not None}

    @property
    def sweeps(self) -> int:
        """The sweeps over the network that all measurements have taken so far."""
        return sum(ends.high.sweeps for ends in self._known.values())

    @property
    def longest(self) -> int:
        """The edges of the longest path to an output: so many steps until news of the loss is everywhere."""
        return self.operators.longest

    def hessian(self, nudge: float = 1.0) -> Measured:
        """λ_max(H), the loss weighted by `nudge`."""
        return self._hessian(nudge, both=False).high

    def slowest(self, nudge: float = 1.0) -> Measured:
        """λ_min(H), or σ_min(A)² where that is too far from λ_max(H) to be found: H exceeds AᵀA for a convex loss."""
        low = self._hessian(nudge, both=True).low
        return low if low.error <= SURE * abs(low.value) else self.softness()

    def _hessian(self, nudge: float, both: bool) -> Ends:
        def apply(u: Vector) -> Vector:
            plus, minus, h = self._displaced(u)
            return _slope(self.operators.forces(minus, nudge)[1], self.operators.forces(plus, nudge)[1], h)

        return self._ends(("hessian", nudge, both), apply, 2, both)

    def stiffness(self) -> Measured:
        """‖A‖²: how much larger errors can be than the displacement that they come from, squared."""

        def apply(u: Vector) -> Vector:
            plus, minus, h = self._displaced(u)
            forward = _slope(self.operators.forces(plus, 1.0)[0], self.operators.forces(minus, 1.0)[0], h)
            return self.operators.adjoint(forward)

        return self._ends("stiffness", apply, 3).high

    def softness(self) -> Measured:
        """σ_min(A)², the smallest singular value squared; 1 / σ_min² is measured, through sweeps, which invert A."""

        def apply(u: Vector) -> Vector:
            plus, minus, h = self._displaced(u)
            forward = _slope(self.operators.forward_sweep(plus), self.operators.forward_sweep(minus), h)
            return self.operators.inverse_adjoint(forward)

        largest = self._ends("softness", apply, 3).high
        return Measured(1 / largest.value, largest.error / largest.value**2, largest.sweeps)

    def curvature(self) -> Ends:
        """λ_min(S) and λ_max(S)."""

        def apply(u: Vector) -> Vector:
            plus, minus, h = self._displaced(u)
            return _slope(self.operators.loss_gradients(minus), self.operators.loss_gradients(plus), h)

        return self._ends("curvature", apply, 2, both=True)

    @property
    def condition(self) -> float:
        """κ(A), the ratio of the largest singular value of A to the smallest."""
        return math.sqrt(self.stiffness().value / self.softness().value)

    def _ends(self, name: object, apply: Callable[[Vector], Vector], cost: int, both: bool = False) -> Ends:
        if name not in self._known:
            like = self.operators.start
            generator = torch.Generator().manual_seed(self.seed)
            first = torch.randn(_flat(like).numel(), generator=generator, dtype=torch.float64)
            first = first.to(_flat(like))
            if name in self.starts:  # chance stays in it, since another sample may have become the most extreme one
                first = self.starts[name] / self.starts[name].norm() + CHANCE * first / first.norm()
            self._known[name] = lanczos(lambda u: _flat(apply(_unflat(u, like))), first, cost, both, self.most)
        return self._known[name]

    def _displaced(self, u: Vector) -> tuple[Vector, Vector, float]:
        """Offsets along u and against it, and their length in units of u: the cube root of rounding."""
        start = self.operators.start
        rounding = max(torch.finfo(t.dtype).eps for t in start.values())
        flat = _flat(start)
        size = float(flat.norm()) / math.sqrt(len(flat)) or 1.0
        largest = max((float(t.abs().max()) for t in u.values() if t.numel()), default=0.0) or 1.0
        h = rounding ** (1 / 3) * size / largest
        return {k: h * t for k, t in u.items()}, {k: -h * t for k, t in u.items()}, h


def _slope(plus: Vector, minus: Vector, h: float) -> Vector:
    return {k: (plus[k] - minus[k]) / (2 * h) for k in plus}


def _flat(vector: Vector) -> Tensor:
    """All entries in a row, real; in the widest type among them."""
    parts = [torch.view_as_real(t).reshape(-1) if t.is_complex() else t.reshape(-1) for t in vector.values()]
    widest = max((p.dtype for p in parts), key=lambda d: (-torch.finfo(d).eps, torch.finfo(d).bits))
    widest = widest if torch.finfo(widest).bits >= 32 else torch.float32
    return torch.cat([p.to(widest) for p in parts])


def _unflat(flat: Tensor, like: Vector) -> Vector:
    tensors, position = dict[str, Tensor](), 0
    for name, t in like.items():
        count = t.numel() * (2 if t.is_complex() else 1)
        part = flat[position : position + count]
        part = part.to(t.real.dtype if t.is_complex() else t.dtype)
        tensors[name] = torch.view_as_complex(part.reshape(*t.shape, 2)) if t.is_complex() else part.reshape(t.shape)
        position += count
    return tensors
