"""A circuit on a chip: the core of each unit, the tile of each core, near to those that it hears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from pccompile.backends.netlist import chip as chips
from pccompile.backends.netlist.arrivals import fan_in
from pccompile.backends.netlist.chip import Chip
from pccompile.backends.netlist.format import Spec, Tensors
from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.placement.load import Demand
from pccompile.backends.netlist.placement.packing import Packing, packed
from pccompile.backends.netlist.placement.verify import Use, measured, violations, widths
from pccompile.diagnostics import CompileError, Problem

if TYPE_CHECKING:
    from pccompile.backends.netlist.netlist import Netlist

ROUNDS = 6
"""How often a circuit is packed anew because more cores hear a core's units than was known before."""


SPARED = 0.08
"""The share of its edges that a core spares for what is not known yet, more each time."""

WAYS = ((True, 1), (True, 2), (False, 1))
"""How circuits are cut, one after the other until they fit: populations that belong together or each by itself, and
how much finer than necessary."""


@dataclass(frozen=True)
class Placement:
    """Where the units of `net` lie on a chip.

    cores: the core of each unit, an array in the shape of each population. tiles: column and row of each core's tile,
    `[cores, 2]`. net is the circuit that was placed: the one given, or that with its fan-in split.
    """

    chip: Chip
    net: Netlist
    cores: Mapping[str, np.ndarray]
    tiles: np.ndarray

    @cached_property
    def use(self) -> Use:
        """What lies on each core and passes between them, counted anew."""
        return measured(self.net, self.chip, self.cores, len(self.tiles))

    @property
    def hops(self) -> int:
        """Messages a tick times the tiles that each passes."""
        return int((self.use.traffic * hops(self.tiles)).sum())

    @property
    def messages(self) -> int:
        """Messages a tick: one for a unit and each core that hears it, its own too."""
        return int(self.use.traffic.sum())

    def check(self) -> tuple[str, ...]:
        """Every limit of the chip that is broken; empty where all hold."""
        return violations(self.net, self.chip, self.cores, self.tiles)

    def foreign(self) -> dict[str, tuple[str, ...]]:
        """The populations of each unit kind that cores do not run as they are, products also at synapses."""
        kinds: dict[str, list[str]] = {}
        for name, p in self.net.spec.populations.items():
            if p.unit not in self.chip.native.value and p.unit != "input":
                kinds.setdefault(p.unit, []).append(name)
        if "product" not in self.chip.native.value:
            multiplied = dict.fromkeys(p.target for p in self.net.spec.projections if OPERATIONS[p.op].multiplies)
            kinds["product"] = [*dict.fromkeys([*kinds.get("product", []), *multiplied])]
        return {kind: tuple(names) for kind, names in kinds.items() if names}

    def copies(self) -> dict[str, int]:
        """The parameters that learn and lie on several cores in full or in part alike, with the number of cores.

        Their changes have to be added up over these cores.
        """
        return {k: n for k, n in self.use.copies.items() if n > 1 and k in self.net.spec.plastic()}


def place(net: Netlist, chip: str | Path | Chip, split: bool = True) -> Placement:
    """The circuit on a chip, all limits respected and verified, few cores, little traffic; always the same.

    split: where units hear more than a core can, first split their fan-in into partial sums. Raises CompileError for
    what does not fit.
    """
    chip = chips.load(chip)
    if wide := tuple(widths(net.spec, chip)):
        fewer = f"net.quantise(weight_bits={chip.default_weight_bits}) makes numbers narrower"
        raise CompileError([Problem(f"{chip.name}: {w}", hint=fewer if w is wide[-1] else "") for w in wide])
    net = _narrowed(net, chip, split)
    spec, tensors = net.spec, net.tensors
    units = sum(p.size for p in spec.populations.values())
    if chip.units is not None and units > chip.units.whole * chip.cores.whole:
        raise CompileError(f"{spec.name} has {units:,} units, {chip.name} has room for "
                           f"{chip.units.whole * chip.cores.whole:,}")  # fmt: skip
    packings: list[Packing] = []
    failures: list[CompileError] = []
    for joined, finer in WAYS:
        try:
            packings.append(_settled(spec, tensors, chip, joined, finer))
        except CompileError as e:
            failures.append(e)
            continue
        if len(packings[-1].loads) <= chip.cores.whole:
            break
    if not packings:
        raise failures[-1]
    packing = min(packings, key=lambda p: len(p.loads))
    if len(packing.loads) > chip.cores.whole:
        raise CompileError(f"{spec.name} takes {len(packing.loads):,} cores, {chip.name} has {chip.cores.whole:,}")
    placement = Placement(chip, net, packing.core, spread(packing.traffic(), chip))
    if broken := placement.check():
        raise CompileError([Problem(w, hint="this is a fault of the placement, not of the circuit") for w in broken])
    return placement


def _settled(spec: Spec, tensors: Tensors, chip: Chip, joined: bool, finer: int) -> Packing:
    """Pack until no core has more edges to cores that hear it than the chip allows."""
    readers: dict[str, np.ndarray] = {}
    limit = chip.axons_out.whole if chip.axons_out is not None else 2**62
    for attempt in range(ROUNDS):
        packing = packed(Demand(spec, tensors, _spared(chip, max(0, attempt - 1)), readers), joined, finer)
        now = {name: packing.readers(name, p.size) for name, p in spec.populations.items()}
        edges = np.zeros(len(packing.loads), dtype=np.int64)
        for name, counts in now.items():
            edges += np.bincount(packing.core[name].reshape(-1), counts, len(edges)).astype(np.int64)
        if edges.max(initial=0) <= limit:
            return packing
        readers = {name: np.maximum(counts, readers.get(name, 0)) for name, counts in now.items()}
    raise CompileError(f"units of {spec.name} are heard by too many cores of {chip.name}: {int(edges.max()):,} edges "
                       f"to cores where {limit:,} are allowed")  # fmt: skip


def _spared(chip: Chip, attempt: int) -> Chip:
    """The chip with fewer edges to other cores, to have some left for cores that turn out to hear more."""
    if chip.axons_out is None or not attempt:
        return chip
    fewer = max(1, int(chip.axons_out.whole * (1 - SPARED * attempt)))
    return msgspec.structs.replace(chip, axons_out=msgspec.structs.replace(chip.axons_out, value=fewer))


def _narrowed(net: Netlist, chip: Chip, split: bool) -> Netlist:
    """The circuit with no unit that hears more than a core can. Raises CompileError where it may not be split."""
    most = chip.most_sources
    if most is None:
        return net
    wide = {name: int(n.max(initial=0)) for name, n in fan_in(net.spec, net.tensors).items()}
    wide = {name: n for name, n in wide.items() if n > most}
    if not wide:
        return net
    if split:
        from pccompile.backends.netlist.transforms.split_fan_in import split_fan_in

        return _narrowed(split_fan_in(net, most), chip, False)
    name, n = max(wide.items(), key=lambda item: item[1])
    raise CompileError(f"units of {name} hear {n:,} units, {chip.name} allows {most:,}",
                       hint=f"split_fan_in(net, {most}) makes partial sums")  # fmt: skip


SWEEPS, TRIALS = 20, 5000
"""How often all cores are tried at other places, at most; and how many cores in all, whole sweeps."""


def spread(traffic: np.ndarray, chip: Chip) -> np.ndarray:
    """The column and row of each core's tile, `[cores, 2]`: first greedily, then exchanged as long as that helps.

    traffic: messages from core to core. The cost is messages × hops, a hop being a step to a neighbouring tile.
    """
    mesh = Mesh(traffic, _places(len(traffic), chip))
    mesh.fill()
    for _ in range(max(1, min(SWEEPS, TRIALS // max(len(traffic), 1)))):
        if not mesh.sweep():
            break
    tiles: np.ndarray = mesh.places[mesh.at]
    return tiles


def hops(tiles: np.ndarray) -> np.ndarray:
    """The hops from each core to each, `[cores, cores]`."""
    distances: np.ndarray = np.abs(tiles[:, None, :] - tiles[None, :, :]).sum(-1)
    return distances


def _places(cores: int, chip: Chip) -> np.ndarray:
    """A place a core of a compact corner of the grid, with some to spare: `[places, 2]`, a tile's places together."""
    each, (columns, rows) = min(chip.cores_per_tile.whole, cores), chip.grid.value
    tiles = -(-cores // each)
    side = math.isqrt(max(2 * tiles - 1, 0)) + 1
    width, height = min(columns, side), min(rows, side)
    width = min(columns, max(width, -(-tiles // height)))
    height = min(rows, max(height, -(-tiles // width)))
    return np.array([(x, y) for y in range(height) for x in range(width) for _ in range(each)])


class Mesh:
    """Cores at places. What a core would cost at each column and at each row is kept: the two add up.

    at: the place of each core, −1 where it has none yet. away[axis][core, position]: messages × steps on that axis.
    """

    def __init__(self, traffic: np.ndarray, places: np.ndarray) -> None:
        self.both = (traffic + traffic.T).astype(np.float64)
        np.fill_diagonal(self.both, 0)
        self.places = places
        self.at = np.full(len(traffic), -1)
        self.occupant = np.full(len(places), -1)
        sizes = places.max(0) + 1
        self.steps = [np.abs(np.arange(n)[:, None] - np.arange(n)[None, :]).astype(np.float64) for n in sizes]
        self.away = [np.zeros((len(traffic), n)) for n in sizes]

    def cost(self, cores: np.ndarray | int, places: np.ndarray | int) -> np.ndarray:
        """What the messages of cores to those that have a place cost when they are at places."""
        x, y = self.places[places].T
        total: np.ndarray = self.away[0][cores, x] + self.away[1][cores, y]
        return total

    def put(self, core: int, place: int) -> None:
        """Place a core, or move it."""
        for axis, steps in enumerate(self.steps):
            change = steps[self.places[place, axis]]
            if self.at[core] >= 0:
                change = change - steps[self.places[self.at[core], axis]]
            self.away[axis] += np.outer(self.both[core], change)
        self.at[core], self.occupant[place] = place, core

    def fill(self) -> None:
        """Place every core: the busiest in the middle, then always the one that most talks to those already there."""
        everywhere = np.arange(len(self.places))
        central = np.abs(self.places - self.places.mean(0)).sum(1)
        total, pull = self.both.sum(1), np.zeros(len(self.at))
        for _ in range(len(self.at)):
            waiting = np.nonzero(self.at < 0)[0]
            core = int(waiting[np.lexsort((waiting, -total[waiting], -pull[waiting]))[0]])
            cost = np.where(self.occupant < 0, self.cost(core, everywhere) + 1e-6 * central, np.inf)
            self.put(core, int(np.argmin(cost)))
            pull += self.both[core]

    def sweep(self) -> bool:
        """Move each core to where that, and moving away who is there, helps most; whether anything moved."""
        helped, everywhere = False, np.arange(len(self.places))
        for core in range(len(self.at)):
            here = int(self.at[core])
            cost = self.cost(core, everywhere)
            gain = cost[here] - cost
            taken = np.nonzero((self.occupant >= 0) & (self.occupant != core))[0]
            who = self.occupant[taken]
            between = np.abs(self.places[taken] - self.places[here]).sum(1)
            gain[taken] += self.cost(who, taken) - self.cost(who, here) - 2 * self.both[core, who] * between
            there = int(np.argmax(gain))
            if gain[there] > 1e-6:
                helped, other = True, int(self.occupant[there])
                self.put(core, there)
                self.occupant[here] = -1
                if other >= 0:
                    self.put(other, here)
        return helped
