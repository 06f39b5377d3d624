"""What a circuit costs: units, synapses, bits, messages and operations a tick, ticks to a gradient, energy on a chip.

Synapses are counted in closed form, a projection at a time; no circuit is unrolled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pccompile.backends.netlist.arrivals import fan_in, fan_out
from pccompile.backends.netlist.chip import Event, Figure
from pccompile.backends.netlist.format import Operator, Population, Spec
from pccompile.backends.netlist.operations import OPERATIONS, learning_rule, operation
from pccompile.backends.netlist.shown import costs_html
from pccompile.ir.law import fewest, weight

if TYPE_CHECKING:
    from pccompile.backends.netlist.netlist import Netlist
    from pccompile.backends.netlist.placement import Placement

STATE_BITS, WEIGHT_BITS = 16, 8
"""The widths in fixed point where a netlist gives none."""

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
"""The gradient errors for which ticks are told."""


@dataclass(frozen=True)
class Spread:
    """The mean over units, and the largest."""

    mean: float
    largest: int

    @classmethod
    def over(cls, counts: Iterable[np.ndarray]) -> Spread:
        """Of numbers, one a unit."""
        every = np.concatenate([np.zeros(0, dtype=np.int64), *counts])
        return cls(float(every.mean()) if every.size else 0.0, int(every.max(initial=0)))


@dataclass(frozen=True)
class PopulationCost:
    """Of one population: its kind and role, units, bits of all their states, synapses into and out of a unit."""

    name: str
    unit: str
    role: str
    units: int
    state_bits: int
    fan_in: Spread
    fan_out: Spread


@dataclass(frozen=True)
class ProjectionCost:
    """Of one projection: its synapses, how many of them multiply by a parameter, whether that learns."""

    name: str
    op: Operator
    synapses: int
    weighted: bool
    learns: bool


@dataclass(frozen=True)
class Energy:
    """Picojoules from `low` to `high`. missing: operations that the chip gives no figure for; unsure: weak figures."""

    low: float
    high: float
    missing: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()

    def __add__(self, other: Energy) -> Energy:
        missing, unsure = (tuple(dict.fromkeys((*a, *b))) for a, b in (
            (self.missing, other.missing), (self.unsure, other.unsure)))  # fmt: skip
        return Energy(self.low + other.low, self.high + other.high, missing, unsure)

    def times(self, n: int) -> Energy:
        """That of so many times the same."""
        return Energy(self.low * n, self.high * n, self.missing, self.unsure)


@dataclass(frozen=True)
class Resources:
    """What a circuit costs, and what that means on the chip of `placement`, if it has one.

    parameters: entries of tensors that act as weights or biases. messages: units whose state somebody reads, a message
    each a tick. macs: synapses with a parameter; products: of two states, in units or at synapses. updates: products
    that a learning tick adds to parameters. depth: integrators on the longest way of an error. ticks: those that bring
    the relative error of each parameter's gradient below a tolerance. settled: that error after the settling phase.
    None where no law is known.
    """

    name: str
    populations: tuple[PopulationCost, ...]
    projections: tuple[ProjectionCost, ...]
    units: int
    synapses: int
    parameters: int
    learned: int
    state_bits: int
    weight_bits: int
    fan_in: Spread
    fan_out: Spread
    messages: int
    macs: int
    products: int
    updates: int
    depth: int | None
    ticks: tuple[tuple[float, int | None], ...]
    settle: int
    settled: float | None
    placement: Placement | None = None
    tick_energy: Energy | None = None
    learning_energy: Energy | None = None
    presentation_energy: Energy | None = None

    @property
    def totals(self) -> dict[str, object]:
        """The numbers of the whole circuit by name."""
        names = (
            "units",
            "synapses",
            "parameters",
            "learned",
            "state_bits",
            "weight_bits",
            "messages",
            "macs",
            "updates",
        )
        return {name.replace("_", " "): getattr(self, name) for name in names}

    def __repr__(self) -> str:
        where = f" on {self.placement.chip.name}" if self.placement is not None else ""
        return f"Resources({self.name}{where}: " + ", ".join(f"{v:,} {k}" for k, v in self.totals.items()) + ")"

    def _repr_html_(self) -> str:
        energies = {"energy of a tick": self.tick_energy, "of a presentation": self.presentation_energy}
        known = {k: f"{e.low:,.3g} to {e.high:,.3g} pJ" for k, e in energies.items() if e is not None}
        cores = {f"cores of {p.chip.name}": len(p.tiles)} if (p := self.placement) is not None else {}
        return costs_html({**self.totals, **cores, **known})


def resources(net: Netlist, placement: Placement | None = None) -> Resources:
    """The costs of a circuit; of that which was placed, where there is a placement."""
    net = placement.net if placement is not None else net
    spec, tensors = net.spec, net.tensors
    into, out = fan_in(spec, tensors), fan_out(spec, tensors)
    plastic = spec.plastic()
    populations = tuple(
        PopulationCost(n, p.unit, p.role, p.size, p.size * state_bits(p), Spread.over([into[n]]), Spread.over([out[n]]))
        for n, p in spec.populations.items()
    )
    projections = tuple(
        ProjectionCost(
            p.name,
            p.op,
            int(operation(p, spec.populations, tensors).fan_in().sum()),
            p.param is not None,
            p.param in plastic,
        )
        for p in spec.projections
    )
    used = weights(spec)
    known = law(spec)
    settle = sum(p.ticks for p in spec.phases if p.name == "settle")
    costs = Resources(
        name=spec.name,
        populations=populations,
        projections=projections,
        units=sum(p.units for p in populations),
        synapses=sum(p.synapses for p in projections),
        parameters=sum(tensors[name].size for name in used),
        learned=sum(tensors[name].size for name in used if name in plastic),
        state_bits=sum(p.state_bits for p in populations),
        weight_bits=sum(tensors[name].size * bits for name, bits in used.items()),
        fan_in=Spread.over(n for name, n in into.items() if n.any()),
        fan_out=Spread.over(n for name, n in out.items() if n.any()),
        messages=sum(int((n > 0).sum()) for n in out.values()),
        macs=sum(p.synapses for p in projections if p.weighted),
        products=sum(p.units for p in populations if p.unit == "product")
        + sum(p.synapses for p in projections if OPERATIONS[p.op].multiplies),
        updates=sum(learning_rule(rule, spec, tensors).products() for rule in spec.plasticity),
        depth=max(known.lengths, default=0) if known is not None else None,
        ticks=tuple((t, known.ticks_for(t) if known is not None else None) for t in TOLERANCES),
        settle=settle,
        settled=known.gradient_error(settle) if known is not None else None,
    )
    return costs if placement is None else _with_energy(costs, placement)


def state_bits(p: Population) -> int:
    """The bits of a unit's state; an integrator's accumulator has guard bits besides."""
    bits = p.bits[0] if p.bits is not None else STATE_BITS
    if p.unit != "integrator":
        return bits
    return bits + int(p.guard if p.guard is not None else max(0, math.ceil(-math.log2(p.rate))))


def weights(spec: Spec) -> dict[str, int]:
    """The tensors that act as weights or biases, and the bits of an entry."""
    bits = {p.bias: STATE_BITS for p in spec.populations.values() if p.bias is not None}
    bits |= {p.param: WEIGHT_BITS for p in spec.projections if p.param is not None}
    for name in bits:
        tensor = spec.tensors.get(name)
        if tensor is not None and tensor.bits is not None:
            bits[name] = tensor.bits[0]
    return bits


def path_lengths(spec: Spec) -> dict[str, frozenset[int]] | None:
    """For each population that carries errors, the numbers of integrators on its ways from the outputs' errors.

    None where errors go round in circles, so that there is no law.
    """
    carries = {n for n, p in spec.populations.items() if p.role in ("error", "gate")}
    sends: dict[str, list[str]] = {}
    for p in spec.projections:
        for name in p.reads if p.target in carries else ():
            if name in carries:
                sends.setdefault(name, []).append(p.target)
    fed = {target for targets in sends.values() for target in targets}
    start = [n for n in carries - fed if spec.populations[n].unit != "integrator"]
    lengths: dict[str, frozenset[int]] = dict.fromkeys(sorted(start), frozenset({0}))
    integrators = sum(p.unit == "integrator" for p in spec.populations.values())
    waiting = dict.fromkeys(lengths)
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        for target in sends.get(name, ()):
            step = int(spec.populations[target].unit == "integrator")
            more = lengths.get(target, frozenset()) | {k + step for k in lengths[name]}
            if more != lengths.get(target):
                if max(more) > integrators:
                    return None
                lengths[target] = more
                waiting[target] = None
    return lengths


@dataclass(frozen=True)
class Law:
    """How far errors have come after T ticks: by P[Binomial(T, rate) ≥ k] on a way over k integrators.

    lengths: the numbers of integrators on the ways of the errors that parameters learn from.
    """

    rate: float
    lengths: frozenset[int]

    def gradient_error(self, ticks: int) -> float:
        """A bound on the relative error of each parameter's gradient: what is missing on any way of an error."""
        return max((abs(1 - weight(ticks, self.rate, k)) for k in self.lengths), default=0.0)

    def ticks_for(self, tolerance: float) -> int | None:
        """The fewest ticks after which that is at most `tolerance`; None where a million are not enough."""
        return fewest(self.gradient_error, tolerance, 2**20)


def law(spec: Spec) -> Law | None:
    """None where none is known: for integrators of several rates or leaks, delays, errors that go round."""
    rates = {p.rate for p in spec.populations.values() if p.unit == "integrator"}
    leaks = {p.leak for p in spec.populations.values() if p.unit == "integrator"}
    lengths = path_lengths(spec)
    if len(rates) > 1 or leaks - {1.0} or any(p.delay for p in spec.projections) or lengths is None:
        return None
    learn = {rule.post for rule in spec.plasticity} | {str(rule.pre) for rule in spec.plasticity}
    ways = frozenset(k for name in learn for k in lengths.get(name, ()))
    return Law(next(iter(rates), 1.0), ways)


def _with_energy(costs: Resources, placement: Placement) -> Resources:
    tick = _spent(placement, {
        "unit": costs.units,
        "synapse": costs.synapses,
        "message": placement.messages,
        "hop": placement.hops,
    })  # fmt: skip
    learning = _spent(placement, {"learn": costs.updates})
    phases = {p.name: p.ticks for p in placement.net.spec.phases}
    learn = phases.get("learn", 0)
    whole = tick.times(sum(phases.values())) + learning.times(learn)
    return replace(costs, placement=placement, tick_energy=tick, learning_energy=learning, presentation_energy=whole)


def _spent(placement: Placement, counts: dict[Event, int]) -> Energy:
    total = Energy(0.0, 0.0)
    for event, n in counts.items():
        figure: Figure | None = placement.chip.energy.get(event)
        if figure is None:
            total += Energy(0.0, 0.0, missing=(event,))
        else:
            low, high = figure.span
            total += Energy(low * n, high * n, unsure=(event,) if figure.unsure else ())
    return total
