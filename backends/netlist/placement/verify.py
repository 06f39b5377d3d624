"""Whether a placement keeps to a chip's limits, counted from the synapses themselves.

Nothing here comes from the placer: synapses are enumerated as exporters write them, and every figure of a core is
added up from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pccompile.backends.netlist.arrivals import Arrival, arrivals
from pccompile.backends.netlist.chip import Chip, Figure
from pccompile.backends.netlist.format import Spec
from pccompile.backends.netlist.operations import OPERATIONS, operation
from pccompile.backends.netlist.synapses import synapses

if TYPE_CHECKING:
    from pccompile.backends.netlist.netlist import Netlist

FEW = 2**22
"""Pairs of a core and a unit that are counted in one array."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Units of `pre` and of `post`, one pair a synapse."""


@dataclass(frozen=True)
class Use:
    """What lies on each core: arrays `[cores]`; messages a tick from core to core, `[cores, cores]`.

    fan_in: the synapses that reach each unit of each population. copies: how many cores hold the same entry of a
    parameter, at most.
    """

    units: np.ndarray
    axons_in: np.ndarray
    axons_out: np.ndarray
    memory: np.ndarray
    traffic: np.ndarray
    fan_in: Mapping[str, np.ndarray]
    copies: Mapping[str, int]

    def limits(self) -> Iterator[tuple[str, np.ndarray]]:
        """The figures that a chip limits, by the name of the limit."""
        for name in ("units", "axons_in", "axons_out", "memory"):
            yield name, getattr(self, name)


def measured(net: Netlist, chip: Chip, cores: Mapping[str, np.ndarray], count: int) -> Use:
    """What a circuit takes of `count` cores with its units on `cores`."""
    spec, tensors = net.spec, net.tensors
    where = {name: np.asarray(c).reshape(-1) for name, c in cores.items()}
    units = sum((np.bincount(c, minlength=count) for c in where.values()), np.zeros(count, dtype=np.int64))
    memory = units * (chip.unit_bits.whole if chip.unit_bits else 0)
    reaching = {name: np.zeros(p.size, dtype=np.int64) for name, p in spec.populations.items()}
    heard: dict[str, list[np.ndarray]] = {name: [] for name in spec.populations}
    stored: dict[tuple[str, bool], np.ndarray] = {}
    for a in arrivals(spec, chip.learns.value):
        pairs = _pairs(a, net)
        keys, number = _rows(pairs, spec.populations[a.pre].size, where[a.post])
        heard[a.pre].append(keys)
        if not a.synapses:
            continue
        reaching[a.post] += np.bincount(pairs[1], minlength=len(reaching[a.post]))
        needed = operation(a.projection, spec.populations, tensors).stored(where[a.post], count)
        if needed is not None:
            key = (str(a.projection.param), a.projection.transpose)
            stored[key] = stored[key] | needed if key in stored else needed
        if not (chip.shares_kernels.value and OPERATIONS[a.projection.op].kernel):
            bits = chip.row_bits(number, _bits(spec, chip, a.projection.param))
            memory = memory + np.bincount(keys // spec.populations[a.pre].size, bits, count).astype(np.int64)
    if chip.shares_kernels.value:
        memory = memory + _kernels(stored, spec, chip, count)
    traffic = np.zeros((count, count), dtype=np.int64)
    for name, found in heard.items():
        if found:
            core, unit = np.divmod(np.unique(np.concatenate(found)), len(where[name]))
            np.add.at(traffic, (where[name][unit], core), 1)
    copies: dict[str, int] = {}
    for (param, _), held in stored.items():
        copies[param] = max(copies.get(param, 0), int(held.sum(0).max(initial=0)))
    return Use(units, traffic.sum(0), traffic.sum(1), memory, traffic, reaching, copies)


def _rows(pairs: Pairs, size: int, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each core and unit of `pre`, of `size`, with synapses there: core × size + unit, and their number."""
    pre, post = pairs
    keys = where[post] * size + pre
    if (int(where.max(initial=0)) + 1) * size > FEW:
        distinct, number = np.unique(keys, return_counts=True)
        return distinct, number
    tally = np.bincount(keys)
    distinct = np.nonzero(tally)[0]
    return distinct, tally[distinct]


def violations(net: Netlist, chip: Chip, cores: Mapping[str, np.ndarray], tiles: np.ndarray) -> tuple[str, ...]:
    """Every limit that is broken, a line each; empty where all hold."""
    wrong = [*_ill_formed(net.spec, chip, cores, np.asarray(tiles)), *widths(net.spec, chip)]
    if len(tiles) > chip.cores.whole:
        wrong.append(f"{len(tiles)} cores are used, {chip.name} has {chip.cores.whole}")
    if any(w.startswith("misplaced") for w in wrong):
        return tuple(wrong)
    use = measured(net, chip, cores, len(tiles))
    for name, counts in use.limits():
        limit: Figure | None = getattr(chip, name)
        if limit is not None:
            wrong += [f"core {core}: {name} {counts[core]:,} exceeds {limit.whole:,}"
                      for core in np.nonzero(counts > limit.whole)[0]]  # fmt: skip
    if chip.fan_in is not None:
        for name, n in use.fan_in.items():
            if n.max(initial=0) > chip.fan_in.whole:
                wrong.append(f"{name}: fan_in {n.max():,} exceeds {chip.fan_in.whole:,}")
    return tuple(wrong)


def _ill_formed(spec: Spec, chip: Chip, cores: Mapping[str, np.ndarray], tiles: np.ndarray) -> Iterator[str]:
    for name, p in spec.populations.items():
        c = np.asarray(cores.get(name, np.zeros(0)))
        if c.shape != p.shape or c.dtype.kind not in "iu":
            yield f"misplaced: {name} has no core for each of its units"
        elif c.size and not 0 <= c.min() <= c.max() < len(tiles):
            yield f"misplaced: {name} lies on cores {c.min()} to {c.max()}, of 0 to {len(tiles) - 1}"
    for name in cores:
        if name not in spec.populations:
            yield f"misplaced: the circuit has no {name}"
    if len(tiles) and (tiles.min() < 0 or (tiles >= np.array(chip.grid.value)).any()):
        yield f"a tile lies outside the grid of {chip.grid.value[0]} × {chip.grid.value[1]}"
    places, many = np.unique(tiles, axis=0, return_counts=True) if len(tiles) else (tiles, np.zeros(0, dtype=int))
    for place, n in zip(places, many, strict=True):
        if n > chip.cores_per_tile.whole:
            yield f"tile {place[0]}, {place[1]} has {n} cores of {chip.cores_per_tile.whole}"


def widths(spec: Spec, chip: Chip) -> Iterator[str]:
    """The parameters and states that have more bits than the chip's."""
    for param in sorted({str(p.param) for p in spec.projections if p.param is not None}):
        bits = _bits(spec, chip, param)
        if bits > chip.weight_bits.whole:
            yield f"{param}: weight_bits {bits} exceeds {chip.weight_bits.whole}"
    for name, p in spec.populations.items():
        if p.bits is not None and p.bits[0] > chip.state_bits.whole:
            yield f"{name}: state_bits {p.bits[0]} exceeds {chip.state_bits.whole}"


def _bits(spec: Spec, chip: Chip, param: str | None) -> int:
    tensor = spec.tensors.get(param) if param is not None else None
    return tensor.bits[0] if tensor is not None and tensor.bits is not None else min(8, chip.weight_bits.whole)


def _kernels(stored: dict[tuple[str, bool], np.ndarray], spec: Spec, chip: Chip, count: int) -> np.ndarray:
    """The memory of kernels that lie once on a core: a row for each source channel and place in the kernel."""
    bits = np.zeros(count, dtype=np.int64)
    groups = {str(p.param): p.groups for p in spec.projections if OPERATIONS[p.op].kernel}
    for (param, transposed), held in stored.items():
        if param not in groups:
            continue
        per = held.shape[1] // groups[param]
        by = held.reshape(count, groups[param], per, held.shape[2], -1)
        rows = by.sum(3 if transposed else 2).reshape(count, -1)
        bits += chip.row_bits(rows, _bits(spec, chip, param)).sum(1)
    return bits


def _pairs(a: Arrival, net: Netlist) -> Pairs:
    """All synapses of an arrival; where a route chooses, all that it chooses from."""
    synapse_list = synapses(a.projection, net.spec, net.tensors)
    return synapse_list.winner if a.winners and synapse_list.winner is not None else synapse_list.pre, synapse_list.post
