"""The formats of states and parameters in fixed point, and the proof that float64 holds every sum of a circuit exactly.

A format is (total, fractional): the integer i stands for i · 2^-fractional, in two's complement of `total` bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.format import Plasticity, Population, Projection, Spec, Tensors, ports_of
from pccompile.backends.netlist.operations import learning_rule, operation
from pccompile.diagnostics import CompileError

Bits = tuple[int, int]

STATE: Bits = (16, 10)
"""The format of states for which the netlist names none."""

WEIGHT = 8
"""The total bits of parameters for which the netlist names no format."""

TABLE = (12, 3)
"""Log2 of the entries and of the range of tables for which the netlist names none."""

EXACT = 2.0**52
"""Integers up to here are shifted and rounded in float64 without error."""

WIDEST = 32
"""The most bits of a state or a parameter."""

LARGEST_TABLE = 20
"""The most that log2 of a table's entries may be."""


def integers(values: Tensor, bits: Bits) -> Tensor:
    """The integers, in float64, nearest to real values: ties to even, saturated, nan as 0."""
    scaled = torch.nan_to_num(torch.round(values.to(torch.float64) * 2.0 ** bits[1]), nan=0.0)
    return saturated(scaled, bits[0])


def saturated(integers: Tensor, total: int) -> Tensor:
    """What `total` bits in two's complement hold of integers."""
    return integers.clamp(-(2.0 ** (total - 1)), 2.0 ** (total - 1) - 1)


def reals(integers: Tensor, bits: Bits) -> Tensor:
    """The values that integers stand for."""
    return integers * 2.0 ** -bits[1]


def constant(gain: float) -> tuple[int, int]:
    """The integer c and the shift s of a factor, gain ≈ c · 2^-s.

    c is ±1 for powers of two, which are exact; otherwise 2^14 ≤ |c| < 2^15, the nearest one, ties to even.
    """
    if gain == 0:
        return 0, 0
    mantissa, exponent = math.frexp(gain)
    if abs(mantissa) == 0.5:
        return int(2 * mantissa), 1 - exponent
    factor = round(mantissa * 2.0**15)
    if abs(factor) == 2**15:  # rounded up
        return int(math.copysign(1, factor)), -exponent
    return factor, 15 - exponent


def fitting(array: np.ndarray, total: int, headroom: float = 1.0) -> Bits:
    """The format of `total` bits with the finest power-of-two scale that holds `headroom` times every entry.

    Where all entries are 0 it is that of the range from −1 to 1. The fraction ends at ±2 WIDEST bits.
    """
    largest = float(np.abs(array).max(initial=0.0)) * headroom
    if not largest:
        return total, total - 1
    fraction = min(total - 1 - math.frexp(largest)[1], 2 * WIDEST)
    if round(largest * 2.0 ** (fraction + 1)) <= 2 ** (total - 1) - 1:
        fraction += 1
    elif round(largest * 2.0**fraction) > 2 ** (total - 1) - 1:
        fraction -= 1
    return total, max(-2 * WIDEST, min(2 * WIDEST, fraction))


@dataclass(frozen=True)
class Formats:
    """The format of every state, of the sum at every port, and of every parameter."""

    states: Mapping[str, Bits]
    ports: Mapping[tuple[str, str], Bits]
    params: Mapping[str, Bits]

    @classmethod
    def of(cls, spec: Spec, tensors: Tensors) -> Formats:
        """What the netlist says, and the defaults where it says nothing.

        A parameter that is nothing but a bias has the format of the first population that it biases; any other has
        WEIGHT bits, scaled to fit its entries. Raises CompileError for formats that cannot be.
        """
        states = {name: p.bits or STATE for name, p in spec.populations.items()}
        ports = {
            (name, port): p.port_bits[i] if p.port_bits else states[name]
            for name, p in spec.populations.items()
            for i, port in enumerate(ports_of(p.unit))
        }
        weights = {p.param for p in spec.projections}
        params: dict[str, Bits] = {}
        for name, population in spec.populations.items():
            if population.bias is not None and population.bias not in weights:
                params.setdefault(population.bias, states[name])
        for name, array in tensors.items():
            if array.dtype.kind == "f":
                said = spec.tensors[name].bits if name in spec.tensors else None
                params[name] = said or params.get(name) or fitting(array, WEIGHT)
        at_ports = ((f"port {port} of {name}", bits) for (name, port), bits in ports.items())
        for name, (total, _) in [*states.items(), *at_ports, *params.items()]:
            if not 2 <= total <= WIDEST:
                raise CompileError(f"{name} has {total} bits; fixed point takes 2 to {WIDEST}")
        return cls(states, ports, params)


def halvings(name: str, population: Population) -> int:
    """k of an integrator's rate 2^-k. Raises CompileError for other rates, and for a leak other than 0 and 1."""
    factor, shift = constant(population.rate)
    if factor != 1 or shift < 0:
        raise CompileError(f"integrator {name} has the rate {population.rate}, which fixed point cannot shift by",
                           hint="compile with a rate of 1, 1/2, 1/4, 1/8 …")  # fmt: skip
    if population.leak not in (0.0, 1.0):
        raise CompileError(f"integrator {name} has the leak {population.leak}; fixed point has 0 and 1")
    return shift


def guard_bits(name: str, population: Population) -> int:
    """The further fractional bits of an integrator's accumulator."""
    return halvings(name, population) if population.guard is None else population.guard


def check(spec: Spec, tensors: Tensors, formats: Formats, replicas: int) -> None:
    """Raise CompileError where a sum could grow beyond what float64 holds exactly, `replicas` learning together."""
    ports: dict[str, float] = {}
    for p in spec.projections:
        scale, shift = scaling(p, formats)
        weight = 2.0 ** (formats.params[p.param][0] - 1) if p.param is not None else 1.0
        terms = operation(p, spec.populations, tensors).most_terms()
        largest = terms * math.prod(2.0 ** (formats.states[n][0] - 1) for n in p.reads) * weight * abs(scale)
        ports[p.post] = ports.get(p.post, 0.0) + largest * 2.0**-shift + 1
        if max(largest, ports[p.post]) > EXACT:
            raise CompileError(f"projection {p.name} adds up to numbers of more than 52 bits",
                               hint="use fewer bits, or divide its fan-in")  # fmt: skip
    for name, population in spec.populations.items():
        if population.unit == "integrator":
            guard = guard_bits(name, population)
            if (ports.get(f"{name}:in", 0.0) + 2.0 ** formats.states[name][0]) * 2.0**guard > EXACT:
                raise CompileError(f"integrator {name} holds numbers of more than 52 bits")
        if population.unit == "product" and formats.ports[name, "x"][0] + formats.ports[name, "y"][0] > 52:
            raise CompileError(f"population {name} multiplies numbers of more than 26 bits")
        if population.unit == "product" and product_shift(name, formats) < formats.states[name][0] - 52:
            raise CompileError(f"the product of {name} shifts to more than 52 bits")
        if population.function == "relu(x)" and formats.states[name][1] - formats.ports[name, "in"][1] > 52 - WIDEST:
            raise CompileError(f"what {name} lets through shifts to more than 52 bits")
        if population.table is not None and not 1 <= population.table[0] <= LARGEST_TABLE:
            raise CompileError(f"population {name} has a table of 2^{population.table[0]} entries")
        if population.bias is not None and formats.params[population.bias][1] < formats.states[name][1]:
            total, fraction = formats.params[population.bias]
            if total + formats.states[name][1] - fraction > 52:
                raise CompileError(f"the bias {population.bias} of {name} shifts to more than 52 bits")
    check_plasticity(spec, tensors, formats, replicas)


def check_plasticity(spec: Spec, tensors: Tensors, formats: Formats, replicas: int) -> None:
    """Raise CompileError where a change of a parameter could grow beyond what float64 holds exactly."""
    for rule in spec.plasticity:
        scale, shift = stepping(rule, formats)
        pre = 2.0 ** (formats.states[rule.pre][0] - 1) if rule.pre is not None else 1.0
        terms = learning_rule(rule, spec, tensors).most_terms() * replicas
        largest = terms * pre * 2.0 ** (formats.states[rule.post][0] - 1) * abs(scale)
        decay = 2.0 ** (formats.params[rule.param][0] - 1) * abs(decaying(rule)[0])
        if max(largest * max(1.0, 2.0**-shift), decay) > EXACT:
            raise CompileError(f"plasticity of {rule.param} adds up to numbers of more than 52 bits",
                               hint="use fewer bits or replicas, or a rate that is a power of two")  # fmt: skip


def scaling(p: Projection, formats: Formats) -> tuple[int, int]:
    """The factor of a projection's sum, and the shift to the right that brings it to the fraction of its port."""
    factor, shift = constant(p.gain)
    carried = sum(formats.states[n][1] for n in p.reads) + (formats.params[p.param][1] if p.param is not None else 0)
    return factor, carried + shift - formats.ports[p.target, p.port][1]


def product_shift(name: str, formats: Formats) -> int:
    """The shift to the right that brings the product of a population's two ports to the fraction of its state."""
    return formats.ports[name, "x"][1] + formats.ports[name, "y"][1] - formats.states[name][1]


def stepping(rule: Plasticity, formats: Formats) -> tuple[int, int]:
    """The factor of a rule's sum, and the shift to the right that brings it to its parameter's fraction."""
    factor, shift = constant(rule.rate * rule.gain)
    carried = formats.states[rule.post][1] + (formats.states[rule.pre][1] if rule.pre is not None else 0)
    return factor, carried + shift - formats.params[rule.param][1]


def decaying(rule: Plasticity) -> tuple[int, int]:
    """The factor and the shift to the right that make a rule's decay of its parameter."""
    return constant(rule.rate * rule.decay)
