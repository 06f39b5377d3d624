"""What part of a circuit costs a core, and whether a core can bear it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from pccompile.backends.netlist.arrivals import Arrival, arrivals, counts
from pccompile.backends.netlist.chip import Chip
from pccompile.backends.netlist.format import Spec, Tensors
from pccompile.backends.netlist.operations import OPERATIONS, operation

Box = tuple[slice | np.ndarray, ...]
"""Part of a population: what lies between two indices on each axis, or some units of a single axis."""

Key = TypeVar("Key")

Kernel = tuple[str, bool]
"""A parameter of shared convolutions, and whether it is used transposed."""


@dataclass
class Load:
    """What some units need of a core: their number, whom they hear (masks), bits of rows, kernels, and edges out."""

    units: int = 0
    bits: int = 0
    out: int = 0
    heard: dict[str, np.ndarray] = field(default_factory=dict)
    kernels: dict[Kernel, np.ndarray] = field(default_factory=dict)

    def joined(self, other: Load) -> Load:
        """The two on one core: what both hear arrives once, what both share lies there once.

        Rows from one unit to both are rounded up to words twice, so that `bits` may be a little too many.
        """
        return Load(
            self.units + other.units,
            self.bits + other.bits,
            self.out + other.out,
            _either(self.heard, other.heard),
            _either(self.kernels, other.kernels),
        )

    @cached_property
    def axons(self) -> int:
        """The distinct units that are heard."""
        return sum(int(np.count_nonzero(mask)) for mask in self.heard.values())

    def beside(self, other: Load) -> int:
        """The units that are heard and that `other` does not hear."""
        return sum(
            int(np.count_nonzero(mask > other.heard[name] if name in other.heard else mask))
            for name, mask in self.heard.items()
        )


def _either(a: dict[Key, np.ndarray], b: dict[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    return {**a, **{k: a[k] | mask if k in a else mask for k, mask in b.items()}}


class Demand:
    """Tells the load of parts of a circuit on a chip.

    readers: for each population, how many cores hear each unit, as far as that is known.
    """

    def __init__(self, spec: Spec, tensors: Tensors, chip: Chip, readers: Mapping[str, np.ndarray]) -> None:
        self.spec, self.tensors, self.chip, self.readers = spec, tensors, chip, readers
        self.into: dict[str, list[Arrival]] = {name: [] for name in spec.populations}
        for a in arrivals(spec, chip.learns.value):
            self.into[a.post].append(a)

    def sources(self) -> tuple[str, ...]:
        """The populations at which nothing arrives: inputs, targets, constants."""
        return tuple(name for name, into in self.into.items() if not into)

    def order(self, names: Iterable[str]) -> np.ndarray:
        """The units of populations with a single axis so that those which hear the same come together."""
        size = self.spec.populations[next(iter(names))].size
        first, most = np.zeros(size, dtype=np.int64), 0
        for a in (a for name in names for a in self.into[name]):
            read = operation(a.projection, self.spec.populations, self.tensors).first_read()
            if read is not None and read[1] > most:
                first, most = read
        return np.argsort(first, kind="stable")

    def of(self, names: Iterable[str], box: Box) -> Load:
        """The load of the same part of each of some populations of one shape."""
        load = Load()
        for name in names:
            population = self.spec.populations[name]
            inside = np.zeros(population.shape, dtype=bool)
            inside[box] = True
            units = int(inside.sum())
            load.units += units
            load.bits += units * (self.chip.unit_bits.whole if self.chip.unit_bits else 0)
            if name in self.readers:
                load.out += int(self.readers[name][inside.reshape(-1)].sum())
            for a in self.into[name]:
                self._arrival(load, a, inside)
        return load

    def _arrival(self, load: Load, a: Arrival, inside: np.ndarray) -> None:
        synapses = counts(a, self.spec, self.tensors, inside)
        mask: np.ndarray = synapses > 0
        load.heard[a.pre] = load.heard[a.pre] | mask if a.pre in load.heard else mask
        if not a.synapses or self.chip.memory is None:
            return
        p = a.projection
        shares = self.chip.shares_kernels.value
        channels = operation(p, self.spec.populations, self.tensors).channels(inside) if shares else None
        if channels is not None:
            key = (str(p.param), p.transpose)
            load.kernels[key] = load.kernels[key] | channels if key in load.kernels else channels
        else:
            load.bits += int(self.chip.row_bits(synapses, self.width(p.param)).sum())

    def width(self, param: str | None) -> int:
        """The bits of a weight of a parameter, or of a synapse that has none."""
        given = self.spec.tensors[param].bits if param in self.spec.tensors else None
        return int(given[0]) if given is not None else self.chip.default_weight_bits

    def memory(self, load: Load) -> int:
        """The bits of memory that a load takes."""
        return load.bits + sum(self._kernel(key, channels) for key, channels in load.kernels.items())

    def _kernel(self, key: Kernel, channels: np.ndarray) -> int:
        """The entries that lead to some channels: a row for each channel and kernel place they come from."""
        (param, transposed), shape = key, self.tensors[key[0]].shape
        groups = self._groups(param)
        rows = (shape[0] // groups if transposed else shape[1]) * int(np.prod(shape[2:]))
        return int(rows) * int(self.chip.row_bits(channels.reshape(groups, -1).sum(1), self.width(param)).sum())

    def _groups(self, param: str) -> int:
        return next(p.groups for p in self.spec.projections if p.param == param and OPERATIONS[p.op].kernel)

    def exceeded(self, load: Load) -> str:
        """Which limit of a core a load goes beyond, with both numbers; empty where it fits."""
        chip = self.chip
        if chip.units is not None and load.units > chip.units.whole:
            return f"{load.units:,} units where {chip.units.whole:,} fit"
        if chip.axons_out is not None and load.out > chip.axons_out.whole:
            return f"{load.out:,} edges to cores that hear it where {chip.axons_out.whole:,} are allowed"
        if chip.axons_in is not None and load.axons > chip.axons_in.whole:
            return f"{load.axons:,} units to hear where {chip.axons_in.whole:,} can be heard"
        if chip.memory is not None and self.memory(load) > chip.memory.whole:
            return f"{self.memory(load):,} bits of synapses where {chip.memory.whole:,} fit"
        return ""
