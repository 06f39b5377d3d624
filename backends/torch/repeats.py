"""Where a sequence repeats itself: runs of equal tokens, found by sorting all suffixes (Manber & Myers 1993).

Suffixes that begin alike stand side by side in a suffix array, and the lengths of what neighbours share (Kasai et al.
2001) nest: each of these intervals is a run of tokens with all the places where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Repeat:
    """A run of `length` tokens that stands at each of `places`, ascending, none of them overlapping."""

    length: int
    places: tuple[int, ...]


def repeats(tokens: Sequence[int], least: int, shortest: int) -> Iterator[Repeat]:
    """The runs of at least `shortest` tokens that stand at `least` places or more.

    A run that follows upon itself is given once: as long as one period of it.
    """
    order = suffixes(tokens)
    found: dict[tuple[int, int], Places] = {}
    for length, first, last in intervals(prefixes(tokens, order)):
        if length < shortest or last - first < least:
            continue
        places = np.sort(order[first:last])
        period = max(shortest, min(length, int(np.diff(places).min())))
        key = period, int(places[0])
        if len(places) > len(found.get(key, ())):
            found[key] = places
    for (period, _), places in found.items():
        apart = _apart(places, period)
        if len(apart) >= least:
            yield Repeat(period, apart)


def suffixes(tokens: Sequence[int]) -> Places:
    """Where the suffixes of `tokens` begin, in their order: sorted by 1, 2, 4 … tokens."""
    rank = np.unique(np.array(tokens, np.int64), return_inverse=True)[1].astype(np.int64)
    size, width = len(rank), 1
    while True:
        behind = np.zeros(size, np.int64)
        behind[: max(size - width, 0)] = rank[width:] + 1
        keys = rank * (size + 1) + behind
        order = np.argsort(keys, kind="stable")
        steps = np.diff(keys[order]) != 0
        rank[order] = np.concatenate([[0], np.cumsum(steps)])
        if steps.all() or width >= size:
            return order
        width *= 2


def prefixes(tokens: Sequence[int], order: Places) -> list[int]:
    """How many tokens each suffix shares with the one before it in `order`."""
    size = len(tokens)
    before = [-1] * size
    for a, b in zip(order[:-1].tolist(), order[1:].tolist(), strict=True):
        before[b] = a
    place = [0] * size
    for i, start in enumerate(order.tolist()):
        place[start] = i
    shared, length = [0] * size, 0
    for start in range(size):
        other = before[start]
        if other < 0:
            length = 0
            continue
        while max(start, other) + length < size and tokens[start + length] == tokens[other + length]:
            length += 1
        shared[place[start]] = length
        length = max(length - 1, 0)
    return shared


def intervals(shared: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The intervals of a suffix array whose suffixes share their first tokens: how many, from where, and to where."""
    stack: list[tuple[int, int]] = []
    for i, length in enumerate([*shared[1:], 0], start=1):
        first = i - 1
        while stack and stack[-1][0] > length:
            longer, first = stack.pop()
            yield longer, first, i
        if length and (not stack or stack[-1][0] < length):
            stack.append((length, first))


def _apart(places: Places, length: int) -> tuple[int, ...]:
    """Those of `places` at which a run can stand that begins behind the end of the one before."""
    found: list[int] = []
    for place in places.tolist():
        if not found or place >= found[-1] + length:
            found.append(place)
    return tuple(found)
