"""Numbers that people write down: short decimals, simple fractions, roots of whole numbers, and some with names.

A number that training has moved has digits to the end of its type, and is one of these only by chance (in float32,
about once in a hundred).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

PUBLISHED = (
    math.pi,
    2 * math.pi,
    math.pi / 2,
    math.sqrt(math.pi),
    math.sqrt(2 * math.pi),
    math.sqrt(2 / math.pi),  # GELU by tanh
    2 / math.sqrt(math.pi),
    0.044715,
    1.702,  # GELU by sigmoid
    1.0507009873554805,  # SELU
    1.6732632423543772,
    1.0507009873554805 * 1.6732632423543772,
    math.e,
    math.log(2),
    math.log(10),
    0.5 * math.log(2 * math.pi),
    255.0,
    127.5,
    0.2,  # hard sigmoid
)
"""Numbers with names of their own; their negatives and inverses count too."""

LARGEST_ARRAY = 4096
"""So many numbers of an array are looked at."""


@dataclass(frozen=True)
class Detail:
    """How fine an element type is, and so what can be told from any other number.

    digits: of a short decimal. denominator: of a simple fraction. root: the largest number whose root is looked for.
    """

    digits: int
    denominator: int
    root: int


FINE, COARSE = Detail(5, 256, 2**16), Detail(2, 8, 2**8)

Candidates = Callable[[float, Detail], list[float]]


def decimals(value: float, detail: Detail) -> list[float]:
    """The short decimal next to `value`."""
    return [float(f"{value:.{detail.digits - 1}e}")]


def fractions(value: float, detail: Detail) -> list[float]:
    """The simple fraction next to `value`."""
    return [float(Fraction(value).limit_denominator(detail.denominator))]


def powers_of_two(value: float, detail: Detail) -> list[float]:
    """The power of two next to `value`."""
    return [math.copysign(2.0 ** round(math.log2(abs(value))), value)]


def inverses(value: float, detail: Detail) -> list[float]:
    """1 / n next to `value`, for whole n for which that is no short decimal."""
    n = round(1 / abs(value)) if abs(value) > 1e-6 else 0
    if n < 3 or decimals(1 / n, detail) == [1 / n]:
        return []
    return [math.copysign(1 / n, value)]


def roots(value: float, detail: Detail) -> list[float]:
    """√n, 1/√n and their roots next to `value`, for whole n that are no squares."""
    size = abs(value)
    near = []
    for power in (2, 4):
        for inverse in (False, True):
            n = round((1 / size if inverse else size) ** power) if 1e-6 < size < 1e6 else 0
            if 2 <= n <= detail.root and math.isqrt(n) ** 2 != n:
                root = float(n ** (1 / power))
                near.append(math.copysign(1 / root if inverse else root, value))
    return near


def published(value: float, detail: Detail) -> list[float]:
    """All published numbers."""
    every = [*PUBLISHED, *(1 / p for p in PUBLISHED)]
    return [*every, *(-p for p in every)]


ANY: tuple[Candidates, ...] = (decimals, fractions, inverses, roots, published)
SCALING: tuple[Candidates, ...] = (powers_of_two, inverses, roots, published)
"""What a formula multiplies with. A temperature of 0.07, 1.5 or 10 is none of these: such are learned."""


def written_by_hand(array: np.ndarray[Any, Any], families: tuple[Candidates, ...] = ANY) -> bool:
    """Whether each number of `array` is one that people write down, to the precision of its type."""
    detail = FINE if array.dtype.itemsize >= 4 else COARSE
    return all(is_written(v, array.dtype, detail, families) for v in array.reshape(-1)[:LARGEST_ARRAY])


def is_written(number: Any, dtype: np.dtype[Any], detail: Detail, families: tuple[Candidates, ...]) -> bool:
    """Whether one number is the nearest of its type to one of the candidates, float32's nearest included; 0 is."""
    value = float(number)
    if value == 0:
        return True
    near = (c for family in families for c in family(value, detail))
    return any(dtype.type(c) == number or dtype.type(np.float32(c)) == number for c in near)
