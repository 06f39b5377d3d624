"""Pieces of a circuit onto cores: those that hear the same come together, inputs fill what is left."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pccompile.backends.netlist.placement.load import Demand, Load
from pccompile.backends.netlist.placement.pieces import Piece, clusters, cut

RECENT = 64
"""How many of the last cores are tried for a further piece."""


@dataclass
class Packing:
    """Which core each unit lies on, `core[population]` in its shape, and the load of each core."""

    loads: list[Load] = field(default_factory=list)
    core: dict[str, np.ndarray] = field(default_factory=dict)

    def readers(self, name: str, size: int) -> np.ndarray:
        """How many cores hear each unit of a population."""
        found = np.zeros(size, dtype=np.int64)
        for load in self.loads:
            if name in load.heard:
                found += load.heard[name]
        return found

    def traffic(self) -> np.ndarray:
        """The messages a tick from each core to each, `[cores, cores]`: one a unit and core that hears it."""
        found = np.zeros((len(self.loads), len(self.loads)), dtype=np.int64)
        for there, load in enumerate(self.loads):
            for name, mask in load.heard.items():
                found[:, there] += np.bincount(self.core[name].reshape(-1)[mask], minlength=len(self.loads))
        return found


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
    chip, found = demand.chip, len(readers)
    if chip.units is not None:
        found = min(found, chip.units.whole - load.units)
    if chip.axons_out is not None:
        found = min(found, int((load.out + np.cumsum(readers) <= chip.axons_out.whole).sum()))
    if chip.memory is not None and width:
        found = min(found, (chip.memory.whole - demand.memory(load)) // width)
    return max(found, 0)


def _take(load: Load, readers: np.ndarray, width: int) -> None:
    load.units += len(readers)
    load.bits += len(readers) * width
    load.out += int(readers.sum())
