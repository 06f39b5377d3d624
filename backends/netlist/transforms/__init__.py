"""Passes on netlists: functions from a netlist to one that computes and learns the same in another form."""

from __future__ import annotations

import itertools
from collections.abc import Container


def fresh(name: str, used: Container[str]) -> str:
    """`name`, with a number where it is used."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain((name,), numbered) if n not in used)
