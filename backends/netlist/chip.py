"""Descriptions of chips: how much a core holds, how cores lie, what operations cost, and who says so."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import yaml

from pccompile.backends.netlist.format import UnitKind
from pccompile.diagnostics import CompileError, first_line
from pccompile.files.reading import read_file
from pccompile.limits import spend

FOLDER = "pccompile.backends.netlist"
LARGEST = 2**16
"""Bytes that a description may have."""


class Sourced(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a figure rests on. unsure: the source is weak, or the figure a conclusion of ours."""

    source: str
    unsure: bool = False
    note: str = ""


class Figure(Sourced, frozen=True, kw_only=True):
    """A number, or a range of them up to `high`."""

    value: float
    high: float | None = None

    @property
    def whole(self) -> int:
        """The number as a count."""
        return int(self.value)

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest value."""
        return self.value, self.value if self.high is None else self.high


class Flag(Sourced, frozen=True, kw_only=True):
    """A property that a chip has or has not."""

    value: bool


class Grid(Sourced, frozen=True, kw_only=True):
    """Columns and rows of tiles."""

    value: tuple[int, int]


class Kinds(Sourced, frozen=True, kw_only=True):
    """Unit kinds."""

    value: tuple[UnitKind, ...]


Event = Literal["synapse", "unit", "learn", "message", "hop"]
"""A message that acts over one synapse, an update of a unit, a change of a synapse, a message that leaves a unit for a
core, and its way from tile to tile."""


class Chip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chip of `cores`, `cores_per_tile` of them at each place of a grid; what is not given is no limit.

    units, axons_in, axons_out, memory: of one core. axons_in: distinct units that it hears; axons_out: pairs of one of
    its units and a core that hears it. fan_in: synapses that reach one unit. memory: bits for synapses, those of one
    source and one projection in rows of at most `row_synapses`, each with a header, in whole words; of a shared kernel
    for its entries only. unit_bits: bits of it that a unit takes too. native: unit kinds that a core runs as they are.
    energy: picojoules an operation.
    """

    name: str
    about: str = ""
    cores: Figure
    cores_per_tile: Figure
    grid: Grid
    units: Figure | None = None
    axons_in: Figure | None = None
    axons_out: Figure | None = None
    fan_in: Figure | None = None
    memory: Figure | None = None
    weight_bits: Figure
    state_bits: Figure
    row_synapses: Figure | None = None
    row_header_bits: Figure | None = None
    word_bits: Figure | None = None
    unit_bits: Figure | None = None
    shares_kernels: Flag
    learns: Flag
    native: Kinds
    energy: dict[Event, Figure] = {}

    def figures(self) -> Iterator[tuple[str, Sourced]]:
        """Everything that has a source, by name."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, Sourced):
                yield name, value
        for event, figure in self.energy.items():
            yield f"energy.{event}", figure

    @property
    def columns(self) -> int:
        """The tiles from left to right."""
        return self.grid.value[0]

    @property
    def tiles(self) -> int:
        """The places of the grid."""
        return self.grid.value[0] * self.grid.value[1]

    @property
    def default_weight_bits(self) -> int:
        """The bits of a weight whose netlist says nothing: 8, or what the chip has."""
        return min(8, self.weight_bits.whole)

    @property
    def most_sources(self) -> int | None:
        """The synapses that may reach one unit. A core that learns hears the two factors of a change besides."""
        heard = [self.axons_in.whole - 2 * self.learns.value] if self.axons_in is not None else []
        given = heard + ([self.fan_in.whole] if self.fan_in is not None else [])
        return min(given) if given else None

    def row_bits(self, synapses: np.ndarray, bits: int) -> np.ndarray:
        """The memory for each of some rows with so many synapses of so many bits each."""
        longest = self.row_synapses.whole if self.row_synapses is not None else 2**40
        full, rest = np.divmod(synapses.astype(np.int64), longest)
        return full * self._words(np.int64(longest), bits) + np.where(rest > 0, self._words(rest, bits), 0)

    def _words(self, synapses: np.ndarray | np.int64, bits: int) -> np.ndarray | np.int64:
        header = 0 if self.row_header_bits is None else self.row_header_bits.whole
        word = 1 if self.word_bits is None else self.word_bits.whole
        return -(-(synapses * bits + header) // word) * word


def names() -> tuple[str, ...]:
    """The chips that come along."""
    folder = resources.files(FOLDER) / "chips"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load(chip: str | Path | Chip) -> Chip:
    """A chip by its name or the path of a YAML file. Raises CompileError for what is not a description of one."""
    if isinstance(chip, Chip):
        return _sound(chip, chip.name)
    path = Path(chip)
    if path.suffix in (".yaml", ".yml"):
        return parse(read_file(path, LARGEST), str(path))
    if str(chip) not in names():
        raise CompileError(f"no chip is called {chip}", hint=f"known are {', '.join(names())}, or give a .yaml file")
    return parse((resources.files(FOLDER) / "chips" / f"{chip}.yaml").read_bytes(), str(chip))


def parse(data: bytes, where: str) -> Chip:
    """The chip that a YAML text describes. Raises CompileError."""
    if len(data) > LARGEST:
        raise CompileError(f"{where} is larger than the {LARGEST:,} bytes that a chip's description may have")
    try:
        spend("entries", _expanded(yaml.compose(data, Loader=yaml.SafeLoader)), f"{where}, its aliases written out,")
        chip = msgspec.yaml.decode(data, type=Chip)
    except RecursionError as e:
        raise CompileError(f"{where} does not describe a chip: it is nested too deeply") from e
    except (CompileError, MemoryError):
        raise
    except Exception as e:  # PyYAML's constructors raise anything where a tag and a value do not go together
        raise CompileError(f"{where} does not describe a chip: {first_line(e)}") from e
    return _sound(chip, where)


def _expanded(node: yaml.Node | None) -> int:
    """How many nodes a YAML document has when each alias is the node that it stands for."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node | None) -> int:
        if node is None:
            return 0
        if id(node) not in sizes:
            sizes[id(node)] = 10**18  # of a node that holds itself
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            sizes[id(node)] = 1 + sum(sum(map(size, p)) if isinstance(p, tuple) else size(p) for p in parts)
        return sizes[id(node)]

    return size(node)


def _sound(chip: Chip, where: str) -> Chip:
    if problem := next(_problems(chip), ""):
        raise CompileError(f"{where} does not describe a chip: {problem}")
    return chip


def _problems(chip: Chip) -> Iterator[str]:
    for name, figure in chip.figures():
        if not figure.source.strip():
            yield f"{name} has no source"
        if isinstance(figure, Figure):
            yield from _number(name, figure)
    if min(chip.grid.value) < 1:
        yield f"the grid has {chip.grid.value[0]} columns and {chip.grid.value[1]} rows"
    elif chip.cores.value > chip.tiles * chip.cores_per_tile.value:
        yield f"{chip.cores.whole} cores do not fit {chip.tiles} tiles of {chip.cores_per_tile.whole}"


def _number(name: str, figure: Figure) -> Iterator[str]:
    low, high = figure.span
    if not 0 < low <= high < 2**53:
        yield f"{name} is {low:g}" if figure.high is None else f"{name} goes from {low:g} to {high:g}"
    elif not name.startswith("energy.") and (figure.high is not None or low != int(low)):
        yield f"{name} is no whole number"
