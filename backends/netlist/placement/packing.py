"""Populations cut into pieces that a core can bear, and these onto cores.

Pieces that hear the same come together, inputs fill what is left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.placement.load import Box, Demand, Load
from pccompile.diagnostics import CompileError, listing

RECENT = 64
"""How many of the last cores are tried for a further piece."""


@dataclass
class Packing:
    """Which core each unit lies on, `core[population]` in its shape, and the load of each core."""

    loads: list[Load] = field(default_factory=list)
    core: dict[str, np.ndarray] = field(default_factory=dict)

    def readers(self, name: str, size: int) -> np.ndarray:
        """How many cores hear each unit of a population."""
        counts = np.zeros(size, dtype=np.int64)
        for load in self.loads:
            if name in load.heard:
                counts += load.heard[name]
        return counts

    def traffic(self) -> np.ndarray:
        """The messages a tick from each core to each, `[cores, cores]`: one a unit and core that hears it."""
        messages = np.zeros((len(self.loads), len(self.loads)), dtype=np.int64)
        for there, load in enumerate(self.loads):
            for name, mask in load.heard.items():
                messages[:, there] += np.bincount(self.core[name].reshape(-1)[mask], minlength=len(self.loads))
        return messages


def packed(demand: Demand, joined: bool, finer: int) -> Packing:
    """All populations on as few cores as come out when each piece goes where it finds most of what it hears.

    joined, finer: how they are cut into pieces, see `clusters` and `cut`.
    """
    packing = Packing(core={n: np.full(p.shape, -1, dtype=np.int64) for n, p in demand.spec.populations.items()})
    for names in clusters(demand, joined):
        for piece in cut(names, demand, finer):
            _put(packing, piece, demand)
    for name in demand.sources():
        _fill(packing, name, demand)
    return packing


def _put(packing: Packing, piece: Piece, demand: Demand) -> None:
    """Place a piece on the core that has to hear the fewest units besides, of those that can bear it, or on a new one.

    Changes `packing`.
    """
    best, best_joined, least = len(packing.loads), piece.load, piece.load.axons + 1
    for core in range(max(0, len(packing.loads) - RECENT), len(packing.loads)):
        old = packing.loads[core]
        if demand.chip.units is not None and old.units + piece.load.units > demand.chip.units.whole:
            continue
        more = piece.load.beside(old)
        if more >= least or (demand.chip.axons_in is not None and old.axons + more > demand.chip.axons_in.whole):
            continue
        joined = old.joined(piece.load)
        if not demand.exceeded(joined):
            best, best_joined, least = core, joined, more
    if best == len(packing.loads):
        packing.loads.append(best_joined)
    else:
        packing.loads[best] = best_joined
    for name in piece.names:
        packing.core[name][piece.box] = best


def _fill(packing: Packing, name: str, demand: Demand) -> None:
    """Put units that hear nothing where there is room: on the first core that hears them, else on any, else a new one.

    Changes `packing`.
    """
    size, chip = demand.spec.populations[name].size, demand.chip
    readers = packing.readers(name, size)
    first = np.full(size, len(packing.loads))
    for core in reversed(range(len(packing.loads))):
        if name in packing.loads[core].heard:
            first[packing.loads[core].heard[name]] = core
    where = packing.core[name].reshape(-1)
    width = chip.unit_bits.whole if chip.unit_bits else 0
    left: list[int] = []
    for core in range(len(packing.loads)):
        wanted = np.nonzero(first == core)[0]
        taken = _room(packing.loads[core], readers[wanted], width, demand)
        where[wanted[:taken]] = core
        _take(packing.loads[core], readers[wanted[:taken]], width)
        left += wanted[taken:].tolist()
    rest = np.array(left + np.nonzero(first == len(packing.loads))[0].tolist(), dtype=np.int64)
    core = 0
    while len(rest):
        if core == len(packing.loads):
            packing.loads.append(Load())
        fresh = not packing.loads[core].units
        taken = max(_room(packing.loads[core], readers[rest], width, demand), int(fresh))
        where[rest[:taken]] = core
        _take(packing.loads[core], readers[rest[:taken]], width)
        rest, core = rest[taken:], core + 1


def _room(load: Load, readers: np.ndarray, width: int, demand: Demand) -> int:
    """How many of some units, in their order, a core has room for."""
    chip, units = demand.chip, len(readers)
    if chip.units is not None:
        units = min(units, chip.units.whole - load.units)
    if chip.axons_out is not None:
        units = min(units, int((load.out + np.cumsum(readers) <= chip.axons_out.whole).sum()))
    if chip.memory is not None and width:
        units = min(units, (chip.memory.whole - demand.memory(load)) // width)
    return max(units, 0)


def _take(load: Load, readers: np.ndarray, width: int) -> None:
    load.units += len(readers)
    load.bits += len(readers) * width
    load.out += int(readers.sum())


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
    ordered = {id(names): tuple(sorted(names, key=place.__getitem__)) for names in group.values()}
    return sorted(ordered.values(), key=lambda names: place[names[0]])


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
    cuts: list[list[slice | np.ndarray]] = []
    for length, n in zip(shape, parts, strict=True):
        edges = [length * i // n for i in range(n + 1)]
        slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        cuts.append([*slices] if order is None else [order[s] for s in slices])
    return cuts


def _fitting(names: tuple[str, ...], cuts: list[list[slice | np.ndarray]], demand: Demand) -> list[Piece] | None:
    """The boxes of a cut; None where one does not fit."""
    pieces = []
    for box in itertools.product(*cuts):
        load = demand.of(names, box)
        if demand.exceeded(load):
            return None
        pieces.append(Piece(names, box, load))
    return pieces
