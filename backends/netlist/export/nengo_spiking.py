"""A netlist in spiking neurons: an ensemble a unit, with what error to expect.

An ensemble of leaky integrate-and-fire neurons holds a number up to its radius with a distortion that depends on the
number, and a noise that time averages (Eliasmith & Anderson 2003, Neural Engineering). What decoders leave of a
function is known when they are solved. Measured with Nengo 4.1 through a synapse of 20 ms and a probe of 100 ms,
relative to the radius, and in brackets as solved: x 2.1 % (1.8) of 25 neurons, 0.54 % (0.64) of 100, 0.32 % (0.40) of
200; a product of two such ensembles 4.3 % (6.4), 0.93 % (2.0), 0.55 % (1.3).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from pccompile.backends.netlist.export import library
from pccompile.backends.netlist.export.nengo_script import Script
from pccompile.backends.netlist.export.numpy_source import numpy_source
from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Population, Projection, Spec
from pccompile.backends.netlist.netlist import Netlist

SYNAPSE, PROBE = 0.02, 0.1
"""Seconds over which a message and what a probe sees are smoothed."""
ROOM = 1.2
"""How much larger than the values of a presentation are those that an ensemble holds."""
DRAWS = 32
"""How often the errors of ensembles are drawn to find what comes of them."""


def unheld(net: Netlist) -> tuple[str, ...]:
    """What spiking ensembles cannot say."""
    return tuple(f"projection {p.name}: a delay of {p.delay} ticks" for p in net.spec.projections if p.delay)


@functools.lru_cache(maxsize=1024)
def distortion(neurons: int, radius: float, source: str = "x") -> float:
    """What decoders of a function leave undone, root mean square over numbers up to `radius`."""
    nengo = library("nengo", "pccompile[nengo]")
    f = function(source)

    def decoded(x: np.ndarray) -> Any:
        return f(torch.from_numpy(np.array(x))).numpy()

    with nengo.Network(seed=0) as network:
        out = nengo.Node(size_in=1)
        made = [nengo.Connection(nengo.Ensemble(neurons, 1, radius=radius), out, function=decoded) for _ in range(4)]
    model = nengo.builder.Model(decoder_cache=nengo.cache.NoDecoderCache())  # the other one lies in the user's home
    with nengo.Simulator(network, model=model, progress_bar=False, optimize=False) as simulator:
        return float(np.sqrt(np.mean([np.square(simulator.data[c].solver_info["rmses"]).mean() for c in made])))


class Spiking(Script):
    """Statements for a netlist in spiking neurons."""

    smoothing = f", synapse={PROBE}"
    steps = 1000

    def __init__(
        self,
        net: Netlist,
        presented: Mapping[str, np.ndarray],
        ticks: int | None,
        probes: Sequence[str] | None,
        neurons: int,
    ) -> None:
        self.neurons, self.radii = neurons, radii(net, presented)
        super().__init__(net, presented, None, ticks, probes)
        self.expected = expected(net, presented, self.radii, neurons)

    def population(self, name: str) -> None:
        """The ensembles of a population."""
        p = self.spec.populations[name]
        if not ensembles(p):
            return super().population(name)
        n, unit, port = p.size, f"units[{name!r}]", f"ports[{name + ':in'!r}]"
        radius = self.radii[name]
        if p.unit == "product":
            self.line(f"{unit}, ports[{name + ':x'!r}], ports[{name + ':y'!r}] = multiplied({name!r}, {n}, "
                      f"{self.neurons}, {radius['x']:.6g}, {radius['y']:.6g})")  # fmt: skip
            return None
        more = f", lambda x: {numpy_source(str(p.function))} + 0 * x" if p.unit == "map" else ""
        held = f"spiking({name!r}, {n}, {self.neurons}, {radius['in']:.6g}{more})"
        if p.unit != "integrator":
            self.line(f"{unit}, {port} = {held}")
            return None
        self.line(f"{port} = nengo.Node(size_in={n}, label={name + ':in'!r})")
        self.line(f"{unit}, held = {held}")
        self.line(f"latching({name + ': leaky step'!r}, {port}, held, {p.rate!r}, {p.leak!r})")
        return None

    def synapse(self, p: Projection) -> str:
        """What spikes is smoothed."""
        return repr(SYNAPSE) if ensembles(self.spec.populations[p.pre]) else "None"


def ensembles(p: Population) -> bool:
    """Whether a population is made of spiking ensembles."""
    return p.unit not in ("input", "select") and p.role != "context"


def radii(net: Netlist, presented: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The largest value that each port of a population has to hold; of an integrator that of its state."""
    simulator = net.simulator(presented)
    simulator.run([("settle", _settling(net))])
    found: dict[str, dict[str, float]] = {}
    for name, p in net.spec.populations.items():
        if not ensembles(p) or not p.size:
            continue
        values: dict[str, torch.Tensor] = dict(simulator.ports(name))
        if p.unit in ("sum", "integrator"):
            values["in"] = simulator.states[name]
        found[name] = {port: _radius(value) for port, value in values.items()}
    return found


def _radius(value: torch.Tensor) -> float:
    return ROOM * float(value.abs().max()) or 1.0


def _settling(net: Netlist) -> int:
    """Ticks after which error units have come to rest, for a chain of all integrators at worst."""
    rates = [p.rate * p.leak for p in net.spec.populations.values() if p.unit == "integrator" and p.rate * p.leak > 0]
    return int((30 + 2 * len(rates)) / min([*rates, 1.0]))


def expected(
    net: Netlist, presented: Mapping[str, np.ndarray], radii: Mapping[str, Mapping[str, float]], neurons: int
) -> dict[str, float]:
    """The error of each error population that follows from those of all ensembles, drawn at random.

    Root mean square, relative to the largest unit of the population.
    """
    one = {name: value[:1] for name, value in presented.items()}
    clean = net.simulator(one)
    clean.run([("settle", _settling(net))])
    rng = np.random.default_rng(0)
    draws: dict[str, np.ndarray] = dict(one)
    for name, p in net.spec.populations.items():
        if name in radii:
            draws[f"{name}+error"] = rng.normal(0, _scale(p, radii[name], neurons), (DRAWS, *p.shape))
    noisy = Netlist(disturbed(net.spec, frozenset(radii)), net.tensors).simulator(draws)
    noisy.run([("settle", _settling(net))])
    found = {}
    for name, p in net.spec.populations.items():
        if name in radii and p.role == "error":
            difference = noisy.states[f"{name}+"] - clean.states[name]
            largest = float(clean.states[name].abs().max())
            found[name] = float(difference.square().mean().sqrt()) / largest if largest else math.inf
    return found


def _scale(p: Population, radii: Mapping[str, float], neurons: int) -> float:
    """The error of a population's ensembles. A product is half the difference of the squares of sum and difference."""
    if p.unit == "product":
        return distortion(neurons, math.sqrt(2), "x**2") * math.sqrt(0.5) * radii["x"] * radii["y"]
    if p.unit != "map":
        return distortion(neurons, 1.0) * radii["in"]
    return distortion(neurons, radii["in"], str(p.function))


def disturbed(spec: Spec, names: frozenset[str]) -> Spec:
    """A netlist whose populations `names` are read through units that add the state of an input, `name+error`."""
    populations, more = dict(spec.populations), []
    for name in sorted(names):
        p = spec.populations[name]
        shape: dict[str, Any] = {"shape": p.shape, "role": p.role, "vertex": p.vertex}
        populations[f"{name}+error"] = Population(unit="input", **shape)
        populations[f"{name}+"] = Population(unit="sum", **shape)
        for source in (name, f"{name}+error"):
            more.append(Projection(name=f"{source}->{name}+", pre=source, post=f"{name}+:in", op="one_to_one"))
    projections = (msgspec.structs.replace(p, pre=f"{p.pre}+") if p.pre in names else p for p in spec.projections)
    return msgspec.structs.replace(spec, populations=populations, projections=(*projections, *more), plasticity=())
