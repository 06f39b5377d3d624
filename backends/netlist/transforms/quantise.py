"""Fixed point for a netlist: a format for every population and parameter, from the ranges seen in floating point."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist import format as fmt
from pccompile.backends.netlist.circuit import FLOOR
from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Population, Spec, Tensors
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.simulate.fixed import EXACT_FUNCTIONS
from pccompile.backends.netlist.simulate.formats import STATE, Bits, Formats, check, fitting, integers, reals
from pccompile.backends.netlist.simulate.synchronous import Simulator

Presentation = Mapping[str, np.ndarray]
"""The states of input populations, `[replicas, *shape]`: what `Netlist.presentation` gives."""

BIAS_RANGE = 2.0
"""The least range of the biases, which have bits to spare."""


def quantise(
    net: Netlist,
    weight_bits: int = 8,
    state_bits: int = 16,
    *,
    presentations: Iterable[Presentation] = (),
    ticks: int | None = None,
    margin: float = 2.0,
    headroom: float = 4.0,
    table_bits: int = 12,
    guard: int | None = None,
) -> Netlist:
    """`net` with formats, its parameters rounded to them; it then runs in fixed point.

    Each population gets the finest fraction that holds `margin` times the largest number seen in it, or at its ports,
    while the presentations settle for `ticks`; errors, being smaller than values, get finer ones. Without presentations
    all have six bits before the point. Weights get the power-of-two scale that holds their largest entry, those that
    learn `headroom` times that. table_bits: log2 of the entries of lookup tables. guard: further bits of integrators;
    without, as many as their rate halves. Raises CompileError for what fixed point cannot do exactly.
    """
    states, inputs = _ranges(net, presentations, ticks)
    coarse = (state_bits, state_bits - (STATE[0] - STATE[1]))
    formats: dict[str, Bits] = {}
    populations: dict[str, Population] = {}
    for name, p in net.spec.populations.items():
        seen = max(states[name], inputs[name])
        formats[name] = fitting(np.array(seen), state_bits, margin) if seen else coarse
        more: dict[str, object] = {"bits": formats[name]}
        if p.unit == "map" and p.function not in EXACT_FUNCTIONS:
            more["table"] = (table_bits, _reach(p, formats[name], margin * inputs[name]))
        if p.unit == "integrator" and guard is not None:
            more["guard"] = guard
        populations[name] = msgspec.structs.replace(p, **more)
    params = _params(net, weight_bits, state_bits, headroom)
    arrays = {name: _rounded(array, params[name]) if name in params else array for name, array in net.tensors.items()}
    described = {name: _described(net.spec, name, arrays[name], params.get(name)) for name in arrays}
    spec = msgspec.structs.replace(net.spec, populations=populations, tensors=described)
    check(spec, arrays, Formats.of(spec, arrays), 1)
    return replace(net, spec=spec, tensors=arrays)


class _Observer(Simulator):
    """A simulator that notes the largest state of each population, and the largest number at a port that it needs."""

    def __init__(self, spec: Spec, tensors: Tensors, replicas: int) -> None:
        self.inputs: dict[str, float] = defaultdict(float)
        super().__init__(spec, tensors, replicas)

    def mapped(self, name: str, port: Tensor) -> Tensor:
        self.inputs[name] = max(self.inputs[name], largest(port))
        return super().mapped(name, port)

    def multiplied(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        self.inputs[name] = max(self.inputs[name], largest(x), largest(y))
        return super().multiplied(name, x, y)


def largest(values: Tensor) -> float:
    """The largest magnitude of values, left aside those that stand for an infinity."""
    size = values.abs()
    size = size[size < -FLOOR / 2]
    return float(size.max()) if size.numel() else 0.0


def _ranges(
    net: Netlist, presentations: Iterable[Presentation], ticks: int | None
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The largest state of each population, and the largest number at its ports, over all presentations."""
    states: dict[str, float] = defaultdict(float)
    inputs: dict[str, float] = defaultdict(float)
    if ticks is None:
        ticks = next((p.ticks for p in net.spec.phases if p.name == "settle"), 1)
    for presentation in presentations:
        observer = _Observer(net.spec, net.tensors, max((len(v) for v in presentation.values()), default=1))
        for name, value in presentation.items():
            observer.set(name, torch.from_numpy(value))
        for _ in range(ticks):
            observer.tick("settle")
            for name, state in observer.states.items():
                states[name] = max(states[name], largest(state))
        for name, seen in observer.inputs.items():
            inputs[name] = max(inputs[name], seen)
    return states, inputs


def _reach(p: Population, bits: Bits, seen: float) -> int:
    """Log2 of the range of a map's table: what was seen, or less where the function is flat from there on."""
    f = function(str(p.function))
    widest = max(1, bits[0] - 1 - bits[1])
    reach = min(widest, math.ceil(math.log2(seen))) if seen else min(widest, 3)
    unit = 2.0 ** -bits[1]
    while reach > -4:
        beyond = torch.linspace(2.0 ** (reach - 1), 2.0**reach, 65, dtype=torch.float64)
        if any(float((f(x) - f(x)[0]).abs().nan_to_num(nan=torch.inf).max()) > unit / 2 for x in (beyond, -beyond)):
            break
        reach -= 1
    return reach


def _params(net: Netlist, weight_bits: int, state_bits: int, headroom: float) -> dict[str, Bits]:
    """The format of each parameter and constant."""
    spec, plastic = net.spec, net.spec.plastic()
    weights = {p.param for p in spec.projections}
    found: dict[str, Bits] = {}
    for name, array in net.tensors.items():
        if array.dtype.kind != "f":
            continue
        finite = np.where(np.abs(array) < -FLOOR / 2, array, 0.0)
        room = headroom if name in plastic else 1.0
        if name in weights:
            found[name] = fitting(finite, weight_bits, room)
        else:
            at_least = BIAS_RANGE / room if name in plastic else 0.0
            found[name] = fitting(np.append(finite, at_least), state_bits, room)
    return found


def _rounded(array: np.ndarray, bits: Bits) -> np.ndarray:
    return reals(integers(torch.from_numpy(array), bits), bits).numpy().astype(array.dtype)


def _described(spec: Spec, name: str, array: np.ndarray, bits: Bits | None) -> fmt.Tensor:
    said = spec.tensors.get(name) or fmt.Tensor(shape=array.shape, dtype=array.dtype.name)  # type: ignore[arg-type]
    return msgspec.structs.replace(said, bits=bits)


__all__ = ["Presentation", "quantise"]
