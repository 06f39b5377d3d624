"""Populations that belong together, cut into pieces that a core can bear."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.placement.load import Box, Demand, Load
from pccompile.diagnostics import CompileError, listing


@dataclass(frozen=True)
class Piece:
    """The part `box` of populations of one shape, to lie on one core, and what it needs there."""

    names: tuple[str, ...]
    box: Box
    load: Load


def clusters(demand: Demand, joined: bool) -> list[tuple[str, ...]]:
    """Populations that hear each other unit by unit, in the circuit's order; each by itself where not `joined`.

    Cut at the same places they need no messages between cores: a value, its slope, its gate and its error.
    """
    spec, outside = demand.spec, set(demand.sources())
    group = {name: [name] for name, p in spec.populations.items() if name not in outside and p.size}
    for into in demand.into.values() if joined else ():
        for a in into:
            same = spec.populations[a.pre].shape == spec.populations[a.post].shape
            if same and OPERATIONS[a.projection.op].unitwise and a.pre in group and a.post in group:
                one, two = group[a.pre], group[a.post]
                if one is not two:
                    one.extend(two)
                    group.update(dict.fromkeys(two, one))
    place = {name: i for i, name in enumerate(spec.populations)}
    found = {id(names): tuple(sorted(names, key=place.__getitem__)) for names in group.values()}
    return sorted(found.values(), key=lambda names: place[names[0]])


def cut(names: tuple[str, ...], demand: Demand, finer: int = 1) -> list[Piece]:
    """The fewest equal boxes that each fit a core, times `finer`; among equally few, such as hear few units.

    Raises CompileError where not even a single unit fits.
    """
    shape = demand.spec.populations[names[0]].shape
    whole = tuple(slice(0, n) for n in shape)
    load = demand.of(names, whole)
    if not demand.exceeded(load) and finer == 1:
        return [Piece(names, whole, load)]
    size = math.prod(shape)
    count = min(size, max(1, _least(load, demand)) * finer)
    order = demand.order(names) if len(shape) == 1 else None
    while count <= size:
        tried = []
        for parts in _factors(count, shape):
            cuts = _cuts(shape, parts, order)
            middle = demand.of(names, tuple(c[min(1, len(c) - 1)] for c in cuts))
            if not demand.exceeded(middle):
                tried.append((middle.axons, parts, cuts))
        for _, _, cuts in sorted(tried, key=lambda t: t[:2]):
            if (pieces := _fitting(names, cuts, demand)) is not None:
                return pieces
        following = max(count + 1, int(count * 1.03))
        count = size if count < size < following else following
    single = demand.exceeded(demand.of(names, tuple(slice(0, 1) for _ in shape)))
    raise CompileError(f"a core of {demand.chip.name} cannot bear one unit of {listing(names)}: {single}")


def _least(load: Load, demand: Demand) -> int:
    """A number of pieces below which a load cannot be spread."""
    chip = demand.chip
    pairs = [(load.units, chip.units), (load.bits, chip.memory), (load.out, chip.axons_out)]
    return max(-(-need // limit.whole) for need, limit in pairs if limit is not None)


def _factors(count: int, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The ways to cut axes into parts, `count` boxes in all."""
    if not shape:
        if count == 1:
            yield ()
        return
    for parts in range(1, min(count, shape[0]) + 1):
        if count % parts == 0:
            yield from ((parts, *rest) for rest in _factors(count // parts, shape[1:]))


def _cuts(shape: tuple[int, ...], parts: tuple[int, ...], order: np.ndarray | None) -> list[list[slice | np.ndarray]]:
    """Each axis in so many parts, as equal as they can be; a single axis in the given order."""
    found: list[list[slice | np.ndarray]] = []
    for length, n in zip(shape, parts, strict=True):
        edges = [length * i // n for i in range(n + 1)]
        slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        found.append([*slices] if order is None else [order[s] for s in slices])
    return found


def _fitting(names: tuple[str, ...], cuts: list[list[slice | np.ndarray]], demand: Demand) -> list[Piece] | None:
    """The boxes of a cut; None where one does not fit."""
    pieces = []
    for box in itertools.product(*cuts):
        load = demand.of(names, box)
        if demand.exceeded(load):
            return None
        pieces.append(Piece(names, box, load))
    return pieces
