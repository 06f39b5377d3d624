"""Passes on netlists: functions from a netlist to one that computes and learns the same in another form."""

from __future__ import annotations

import itertools
from collections.abc import Container

import numpy as np


def fresh(name: str, used: Container[str]) -> str:
    """`name`, with a number where it is used."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain((name,), numbered) if n not in used)


def places(owners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of its owner's entries precede each entry, and how many each of `size` owners has."""
    counts = np.bincount(owners, minlength=size)
    order = np.argsort(owners, kind="stable")
    place = np.empty(len(owners), np.int64)
    place[order] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place, counts


def table(rows: np.ndarray, units: np.ndarray, size: int) -> np.ndarray:
    """The index of a gather of units[s] to row rows[s], of `size` rows."""
    place, counts = places(rows, size)
    found = np.full((size, max(1, int(counts.max(initial=0)))), -1, np.int64)
    found[rows, place] = units
    return found
