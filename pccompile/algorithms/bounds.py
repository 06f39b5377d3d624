"""What a rate can follow from: the numbers of one batch that bound it, whoever measures them (analysis.spectrum)."""

from __future__ import annotations

from typing import Protocol


class Bound(Protocol):
    """A measured number, which prints with its error."""

    @property
    def value(self) -> float:
        """The number itself."""
        ...


class Interval(Protocol):
    """The smallest and the largest eigenvalue of an operator."""

    @property
    def low(self) -> Bound:
        """The smallest."""
        ...

    @property
    def high(self) -> Bound:
        """The largest."""
        ...

    @property
    def norm(self) -> float:
        """The largest absolute value."""
        ...


class Bounds(Protocol):
    """H is the Hessian of the free energy, A takes displacements to errors, and S is the curvature of the loss."""

    @property
    def empty(self) -> bool:
        """Whether there is no hidden vertex, and so nothing that inference could move."""
        ...

    @property
    def longest(self) -> int:
        """The edges of the longest path to an output."""
        ...

    @property
    def condition(self) -> float:
        """κ(A)."""
        ...

    def hessian(self, nudge: float = 1.0) -> Bound:
        """λ_max(H), the loss weighted by `nudge`."""
        ...

    def stiffness(self) -> Bound:
        """‖A‖²."""
        ...

    def softness(self) -> Bound:
        """σ_min(A)²."""
        ...

    def curvature(self) -> Interval:
        """λ_min(S) and λ_max(S)."""
        ...
