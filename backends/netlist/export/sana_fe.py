"""SANA-FE: a placed netlist as an architecture and a network, for time and energy of a tick on the level of cores.

Boyle et al. (2025), SANA-FE: Simulating Advanced Neuromorphic Architectures for Fast Exploration,
doi:10.1109/TCAD.2025.3537971; files as SANA-FE 2 reads them. SANA-FE counts what happens and does not compute what we
compute: each unit sends its state at every tick, so each neuron spikes at every step, whatever reaches it. Plasticity
is not in its model, so that its figures are those of a settling tick.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pccompile.backends.netlist.chip import load
from pccompile.backends.netlist.export import library, refuse, write
from pccompile.backends.netlist.format import Projection
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.synapses import count, synapses, weights
from pccompile.ir.names import Namer, identifier

if TYPE_CHECKING:
    from pccompile.backends.netlist.placement import Placement

LARGEST = 5_000_000
"""The most synapses that are written out, a line each."""

Cores = Mapping[str, np.ndarray]
"""The core of each unit, by population."""


@dataclass(frozen=True)
class Costs:
    """Joules and seconds of what a chip does; an update of an active neuron is an access and an update."""

    synapse: tuple[float, float]
    access: tuple[float, float]
    update: tuple[float, float]
    message: tuple[float, float]
    east_west: tuple[float, float]
    north_south: tuple[float, float]


def loihi() -> Costs:
    """The costs of Loihi: energies of its description, latencies of the table that it has them from.

    Davies et al. (2018), Loihi: a neuromorphic manycore processor with on-chip learning, table 2,
    doi:10.1109/MM.2018.112130359.
    """
    joules = {operation: [e * 1e-12 for e in figure.span] for operation, figure in load("loihi1").energy.items()}
    (inactive, active), (east_west, north_south) = joules["unit"], joules["hop"]
    return Costs(
        synapse=(joules["synapse"][0], 3.5e-9),
        access=(inactive, 5.3e-9),
        update=(active - inactive, 3.1e-9),
        message=(joules["message"][0], 2.1e-9),
        east_west=(east_west, 4.1e-9),
        north_south=(north_south, 6.5e-9),
    )


@dataclass(frozen=True)
class Traffic:
    """Synaptic events and packets of a tick; a packet goes from a unit to a core that hears it, its own too."""

    events: int
    packets: int


class SanaFE:
    """Writes `<name>_arch.yaml` and `<name>_snn.yaml`."""

    name = "sana-fe"

    def supports(self, net: Netlist) -> tuple[str, ...]:
        """Projections whose synapses are too many to be written out."""
        counts: Counter[str] = Counter()
        for p in _readings(net):
            counts[p.name] += count(p, net.spec, net.tensors)
        if sum(counts.values()) <= LARGEST:
            return ()
        largest = max(counts, key=lambda name: counts[name])
        return (
            f"projection {largest}: {counts[largest]:,} of {sum(counts.values()):,} synapses, where {LARGEST:,} fit",
        )

    def emit(
        self,
        net: Netlist,
        folder: Path,
        *,
        name: str = "",
        placement: Placement | None = None,
        cores: Cores | None = None,
        tiles: np.ndarray | None = None,
        costs: Costs | None = None,
        units: int = 1024,
    ) -> tuple[Path, ...]:
        """Write both files.

        placement: where units lie, with the circuit that was placed. cores, tiles: the same as arrays, the core of each
        unit and the column and row of each core's tile. Without, cores are filled one after the other with `units`
        units each, and tiles with four cores.
        """
        if placement is not None:
            net, cores, tiles = placement.net, placement.cores, placement.tiles
        refuse("SANA-FE", self.supports(net))
        cores = packed(net, units) if cores is None else cores
        number = 1 + max((int(c.max()) for c in cores.values() if c.size), default=0)
        grid = Grid(square(number) if tiles is None else np.asarray(tiles))
        stem = identifier(name or net.spec.name)
        files = {f"{stem}_arch.yaml": architecture(stem, grid, costs or loihi(), largest(cores)),
                 f"{stem}_snn.yaml": "\n".join(network(net, cores, grid)) + "\n"}  # fmt: skip
        return write(folder, {name: text.encode() for name, text in files.items()})


def _readings(net: Netlist) -> Iterator[Projection]:
    """The projections, and those that multiply once for each population that they hear."""
    for p in net.spec.projections:
        yield from OPERATIONS[p.op].readings(p)


def packed(net: Netlist, units: int) -> Cores:
    """Cores filled one after the other."""
    cores, start = {}, 0
    for name, p in net.spec.populations.items():
        cores[name] = (np.arange(start, start + p.size) // units).reshape(p.shape)
        start += p.size
    return cores


def largest(cores: Cores) -> int:
    """The most units of a core."""
    return int(np.bincount(np.concatenate([c.ravel() for c in cores.values()])).max())


def square(number: int) -> np.ndarray:
    """Column and row of the tile of each core, four to a tile, on a mesh as wide as high."""
    tiles = np.arange(number) // 4
    width = math.isqrt(int(tiles[-1])) + 1
    return np.stack([tiles % width, tiles // width], 1)


class Grid:
    """A mesh of tiles; SANA-FE numbers tiles down each column, and cores within a tile."""

    def __init__(self, tiles: np.ndarray) -> None:
        self.width, self.height = (int(n) for n in tiles.max(0) + 1)
        tile = tiles[:, 0] * self.height + tiles[:, 1]
        self.counts = np.bincount(tile, minlength=self.width * self.height)
        seen = np.zeros_like(self.counts)
        self.address: list[str] = []
        for t in tile:
            self.address.append(f"{t}.{seen[t]}")
            seen[t] += 1


def traffic(net: Netlist, cores: Cores) -> Traffic:
    """What passes on a tick where every unit sends its state to every core that hears it."""
    events = 0
    heard: dict[str, list[np.ndarray]] = {}
    number = 1 + max(int(c.max()) for c in cores.values() if c.size)
    for p in _readings(net):
        listed = synapses(p, net.spec, net.tensors)
        events += len(listed.post)
        heard.setdefault(p.pre, []).append(np.unique(listed.pre * number + cores[p.target].ravel()[listed.post]))
    return Traffic(events, sum(len(np.unique(np.concatenate(keys))) for keys in heard.values()))


def architecture(name: str, grid: Grid, costs: Costs, units: int) -> str:
    """The architecture file: a mesh of tiles with cores of one kind."""

    def attributes(**given: Any) -> str:
        return "{" + ", ".join(f"{k}: {v:e}" if isinstance(v, float) else f"{k}: {v}" for k, v in given.items()) + "}"

    def cost(kind: str, pair: tuple[float, float]) -> dict[str, float]:
        return {f"energy_{kind}": pair[0], f"latency_{kind}": pair[1]}

    hops = {k: v for side in ("north", "south") for k, v in cost(f"{side}_hop", costs.north_south).items()}
    hops |= {k: v for side in ("east", "west") for k, v in cost(f"{side}_hop", costs.east_west).items()}
    soma = {
        **cost("access_neuron", costs.access),
        **cost("update_neuron", costs.update),
        **cost("spike_out", (0.0, 0.0)),
    }
    parts: dict[str, dict[str, Any]] = {
        "axon_in": cost("message_in", (0.0, 0.0)),
        "synapse": {"model": "current_based", **cost("process_spike", costs.synapse)},
        "dendrite": {"model": "accumulator", **cost("update", (0.0, 0.0))},
        "soma": {"model": "leaky_integrate_fire", **soma},
        "axon_out": cost("message_out", costs.message),
    }
    lines = [
        "# Generated by pccompile.",
        "architecture:",
        f"  name: {name}",
        f"  attributes: {attributes(topology='mesh', width=grid.width, height=grid.height, link_buffer_size=16)}",
        "  tile:",
    ]
    for i, cores in enumerate(grid.counts.tolist()):
        lines += [
            f"    - name: tile_{i}",
            f"      attributes: {attributes(**hops)}",
            "      core:",
            f"        - name: core[0..{max(cores, 1) - 1}]",
            f"          attributes: {attributes(buffer_position='soma', max_neurons_supported=units)}",
        ]
        for part, given in parts.items():
            lines += [f"          {part}:", f"            - {{name: {part}, attributes: {attributes(**given)}}}"]
    return "\n".join(lines) + "\n"


def network(net: Netlist, cores: Cores, grid: Grid) -> Iterator[str]:
    """The lines of the network file: groups are populations."""
    namer = Namer()
    names = {name: namer(name) for name, p in net.spec.populations.items() if p.size}
    yield from ("# Generated by pccompile.", "network:", f"  name: {identifier(net.spec.name)}", "  groups:")
    for name, group in names.items():
        yield f"    - name: {group}"
        yield "      attributes: {threshold: 0.0, bias: 1.0e+30, leak_decay: 0.0, force_update: true}"
        yield f"      neurons: [0..{net.spec.populations[name].size - 1}: {{}}]"
    yield "  edges:"
    for p in _readings(net):
        if p.pre in names and p.target in names:
            yield f"    # {p.name.encode('unicode_escape').decode()}: {p.op}"
            yield from edges(net, p, names[p.pre], names[p.target])
    yield "mappings:"
    for name, group in names.items():
        flat = cores[name].ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(flat)], strict=True):
            yield f"  - {group}.{first}..{last - 1}: {{core: {grid.address[flat[first]]}}}"


def edges(net: Netlist, p: Projection, pre: str, post: str) -> Iterator[str]:
    """The edges of a projection."""
    listed = synapses(p, net.spec, net.tensors)
    to, source, weight = listed.post, listed.pre, weights(p, listed, net.tensors)
    if OPERATIONS[p.op].matrix and len(to) == net.spec.populations[p.pre].size * net.spec.populations[p.target].size:
        order = np.lexsort((to, source))
        yield f"    - {pre} -> {post}: {{type: dense, weight: [{', '.join(f'{w:.9g}' for w in weight[order])}]}}"
        return
    for o, i, w in zip(to.tolist(), source.tolist(), weight.tolist(), strict=True):
        yield f"    - {pre}.{i} -> {post}.{o}: {{weight: {w:.9g}}}"


@dataclass(frozen=True)
class Measured:
    """What SANA-FE counts in one tick: joules, seconds, synaptic events and packets."""

    energy: Mapping[str, float]
    time: float
    traffic: Traffic


def measure(architecture: Path, network: Path) -> Measured:
    """Run SANA-FE for a tick on the files of `emit`. Raises CompileError where it is not installed."""
    sanafe = library("sanafe", "sanafe")
    arch = sanafe.load_arch(str(architecture))
    chip = sanafe.SpikingChip(arch)
    chip.load(sanafe.load_net(str(network), arch))
    measured = chip.sim(1, timing_model="simple")
    return Measured(
        dict(measured["energy"]), float(measured["sim_time"]), Traffic(measured["spikes"], measured["packets_sent"])
    )


def energy(net: Netlist, **options: Any) -> Measured:
    """What a settling tick of a netlist takes; options are those of `emit`."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(*EXPORTER.emit(net, Path(folder), **options))


EXPORTER = SanaFE()
