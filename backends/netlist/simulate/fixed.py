"""Bit-true fixed point: every state and parameter an integer, saturating, with guard bits and lookup tables.

The semantics are those of docs/netlist.md, "Fixed point"; hardware that follows them agrees bit for bit. The integers
lie in float64, where they are exact (`formats.check`), so that the same matrix products serve as in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Plasticity, Population, Projection, Spec, Tensors
from pccompile.backends.netlist.simulate.formats import (
    TABLE,
    Bits,
    Formats,
    check,
    check_plasticity,
    decaying,
    guard_bits,
    halvings,
    integers,
    product_shift,
    reals,
    saturated,
    scaling,
    stepping,
)
from pccompile.backends.netlist.simulate.synchronous import Simulator

Rounding = Literal["nearest", "stochastic"]
"""How changes of parameters are rounded; all else is rounded to nearest."""

EXACT_FUNCTIONS = ("relu(x)", "step(x)")
"""What `map` units compute without a table."""


def shifted(v: Tensor, k: int) -> Tensor:
    """v · 2^-k to the nearest integer, ties upwards; exact where k ≤ 0."""
    if k == 0:
        return v
    scaled: Tensor = v * 2.0**-k
    return scaled if k < 0 else torch.floor(scaled + 0.5)


def lottery(v: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """v · 2^-k, rounded up with the probability of its remainder."""
    if k <= 0:
        return v * 2.0**-k
    draw = torch.rand(v.shape, generator=generator, dtype=torch.float64)
    return torch.floor(v * 2.0**-k + torch.floor(draw * 2.0**k) * 2.0**-k)


def sampled(population: Population) -> Tensor:
    """A map population's function at the centre of each bin of its table, as real numbers."""
    entries, reach = population.table or TABLE
    step = 2.0 ** (reach + 1 - entries)
    centres = (torch.arange(2**entries, dtype=torch.float64) - 2 ** (entries - 1) + 0.5) * step
    return function(str(population.function))(centres)


def table(population: Population, bits: Bits) -> Tensor:
    """The entries of a map population's table."""
    return integers(sampled(population), bits)


def entry(u: Tensor, population: Population, fraction: int) -> Tensor:
    """The number of the table entry that each input of a map population, with so many fractional bits, falls on."""
    entries, reach = population.table or TABLE
    place: Tensor = torch.floor(u * 2.0 ** (entries - reach - 1 - fraction)) + 2 ** (entries - 1)
    return place.clamp(0, 2**entries - 1).to(torch.int64)


class Saturated(dict[str, Tensor]):
    """By name, which numbers did not fit their format."""

    def mark(self, name: str, ideal: Tensor, held: Tensor) -> None:
        """Remember where `held` is not what it should have become."""
        beyond = ideal != held
        self[name] = self[name] | beyond if name in self else beyond


class FixedSimulator(Simulator):
    """A netlist in fixed point. `states` and `params` are integers in float64; `values` and `parameters` are real.

    rounding: of changes of parameters. Raises CompileError for what fixed point cannot do exactly.
    """

    def __init__(
        self, spec: Spec, tensors: Tensors, replicas: int = 1, rounding: Rounding = "nearest", seed: int = 0
    ) -> None:
        self.tensors, self.formats = tensors, Formats.of(spec, tensors)
        check(spec, tensors, self.formats, replicas=0)
        self.rounding, self.generator = rounding, torch.Generator().manual_seed(seed)
        self.scales = {p.name: scaling(p, self.formats) for p in spec.projections}
        self.halvings = {n: halvings(n, p) for n, p in spec.populations.items() if p.unit == "integrator"}
        self.guards = {n: guard_bits(n, spec.populations[n]) for n in self.halvings}
        self.tables = {
            name: table(p, self.formats.states[name])
            for name, p in spec.populations.items()
            if p.unit == "map" and p.function not in EXACT_FUNCTIONS
        }
        undefined = ((name, sampled(spec.populations[name]).isnan()) for name in self.tables)
        self.undefined_entries = {name: entries for name, entries in undefined if bool(entries.any())}
        self.undefined_units: dict[str, int] = {}
        self.saturated_units, self.saturated_entries = Saturated(), Saturated()
        super().__init__(spec, tensors, replicas)
        self.learnable = False
        self.params = {name: self.converted(name, p) for name, p in self.params.items()}

    def reset(self) -> None:
        """Forget all states, and which of them saturated; parameters stay."""
        super().reset()
        self.saturated_units, self.undefined_units = Saturated(), {}
        self.accumulators = {name: self.states[name] for name in self.halvings}

    def set(self, population: str, value: Tensor) -> None:
        """Set the state of an input population to the integers nearest to `value`."""
        value, bits = torch.as_tensor(value, dtype=torch.float64), self.formats.states[population]
        whole = integers(value, bits)
        super().set(population, value)
        beyond = torch.round(self.states[population] * 2.0 ** bits[1])
        super().set(population, whole)
        self.saturated_units.mark(population, beyond, self.states[population])

    def converted(self, name: str, param: Tensor) -> Tensor:
        """The integers nearest to the entries of a parameter."""
        bits = self.formats.params[name]
        whole = integers(param, bits)
        self.saturated_entries.mark(name, torch.round(param.to(torch.float64) * 2.0 ** bits[1]), whole)
        return whole

    def saturations(self) -> dict[str, int]:
        """For each population, its units that saturated in some replica since the last reset; parameters' entries."""
        units = {name: int(units.any(0).sum()) for name, units in self.saturated_units.items()}
        entries = {name: int(entries.sum()) for name, entries in self.saturated_entries.items()}
        return {name: count for name, count in (*units.items(), *entries.items()) if count}

    def value(self, name: str) -> Tensor:
        """The state of a population as real numbers."""
        return reals(self.states[name], self.formats.states[name])

    def undefined(self) -> str:
        """The first population whose table has no number where its inputs are now, in words; '' if there is none."""
        for name in self.order:
            if wrong := self.undefined_units.get(name):
                units = f"{wrong} of {self.states[name].numel()} units"
                return f"population {name} has no value after {self.time} ticks ({units} read nan in its table)"
        return ""

    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters as real numbers."""
        return {name: reals(p, self.formats.params[name]) for name, p in self.params.items()}

    def scaled(self, p: Projection, got: Tensor) -> Tensor:
        """`got` times the gain of a projection, in the fraction of its target."""
        factor, shift = self.scales[p.name]
        return shifted(got if factor == 1 else got * factor, shift)

    def fit(self, name: str, integers: Tensor) -> Tensor:
        """What a population's format holds of integers in its fraction."""
        state = saturated(integers, self.formats.states[name][0])
        self.saturated_units.mark(name, integers, state)
        return state

    def arriving(self, name: str, port: str, integers: Tensor) -> Tensor:
        """What the format of a port holds of the sum there."""
        return saturated(integers, self.formats.ports[name, port][0])

    def summed(self, name: str, port: Tensor) -> Tensor:
        """The state of a `sum` population."""
        bias = self.bias(name)
        if bias is not None:
            fraction = self.formats.params[str(self.spec.populations[name].bias)][1]
            port = port + shifted(bias, fraction - self.formats.states[name][1])
        return self.fit(name, port)

    def mapped(self, name: str, port: Tensor) -> Tensor:
        """The state of a `map` population."""
        population, bits = self.spec.populations[name], self.formats.states[name]
        u, fraction = self.arriving(name, "in", port), self.formats.ports[name, "in"][1]
        if name in self.tables:
            return self.looked_up(name, port, u)
        if population.function == "relu(x)":
            through = shifted(u.clamp(min=0), fraction - bits[1])
            state = self.fit(name, through)
            self.saturated_units.mark(name, port.clamp(min=0), u.clamp(min=0))
            return state
        return self.fit(name, (u > 0).to(torch.float64) * 2.0 ** bits[1])

    def looked_up(self, name: str, port: Tensor, u: Tensor) -> Tensor:
        """The table entries of a `map` population for `u`, what its port holds of the sum `port`.

        A sum beyond the port or the table counts as saturated only where the function still bends there.
        """
        population, bits = self.spec.populations[name], self.formats.states[name]
        fraction = self.formats.ports[name, "in"][1]
        place = entry(u, population, fraction)
        state = self.tables[name][place]
        if name in self.undefined_entries:
            self.undefined_units[name] = int(self.undefined_entries[name][place].sum())
        reach = 2.0 ** ((population.table or TABLE)[1] + fraction)
        beyond = (u != port) | (u.abs() > reach)
        if bool(beyond.any()):
            ideal = function(str(population.function))(reals(port, (bits[0], fraction))) * 2.0 ** bits[1]
            bent = beyond & ~((ideal - state).abs() <= 2)
            self.saturated_units.mark(name, torch.where(bent, torch.inf, state), state)
        return state

    def multiplied(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """The state of a `product` population."""
        product = self.arriving(name, "x", x) * self.arriving(name, "y", y)
        self.saturated_units.mark(name, x * y, product)
        return self.fit(name, shifted(product, product_shift(name, self.formats)))

    def select(self, name: str, source: Projection, states: Tensor) -> Tensor:
        """The winners' messages."""
        return self.fit(name, super().select(name, source, states))

    def integrated(self, name: str) -> Tensor:
        """The next state of an integrator, whose accumulator moves on."""
        guard, total = self.guards[name], self.formats.states[name][0]
        held, arriving = self.accumulators[name], self.ports(name)["in"] * 2.0**guard
        change = arriving - held if self.spec.populations[name].leak else arriving
        ideal = held + shifted(change, self.halvings[name])
        self.accumulators[name] = saturated(ideal, total + guard)
        self.saturated_units.mark(name, ideal, self.accumulators[name])
        return self.fit(name, shifted(self.accumulators[name], guard))

    def learn(self, phase: str) -> Callable[[], None]:
        """What this tick's plasticity asks for. Raises CompileError, the first time, where it cannot be exact."""
        if not self.learnable and any(rule.phase == phase for rule in self.spec.plasticity):
            check_plasticity(self.spec, self.tensors, self.formats, self.replicas)
            self.learnable = True
        return super().learn(phase)

    def step(self, rule: Plasticity, found: Tensor) -> Tensor:
        """What a rule adds to its parameter where its sum of products is `found`, in the parameter's fraction."""
        step = self.rounded(found, *stepping(rule, self.formats))
        return step - self.rounded(self.params[rule.param], *decaying(rule)) if rule.decay else step

    def rounded(self, integers: Tensor, factor: int, shift: int) -> Tensor:
        """A change of a parameter, factor · 2^-shift of integers."""
        product = integers if factor == 1 else integers * factor
        return shifted(product, shift) if self.rounding == "nearest" else lottery(product, shift, self.generator)

    def move(self, name: str, total: Tensor) -> None:
        """Change a parameter in its place, saturating."""
        ideal = self.params[name] + total
        self.params[name].copy_(saturated(ideal, self.formats.params[name][0]))
        self.saturated_entries.mark(name, ideal, self.params[name])
