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
from pccompile.backends.netlist.simulate.formats import (
    STATE,
    Bits,
    Formats,
    check,
    fitting,
    integers,
    reals,
)
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
    learn: bool = False,
    margin: float = 2.0,
    headroom: float = 4.0,
    table_bits: int = 12,
    guard: int | None = None,
) -> Netlist:
    """`net` with formats, its parameters rounded to them; it then runs in fixed point.

    Each population gets the finest fraction that holds `margin` times the largest number seen in it, or at its ports,
    while the presentations settle for `ticks`; errors, being smaller than values, get finer ones. Without presentations
    all have six bits before the point. Weights get the power-of-two scale that holds their largest entry, those that
    learn `headroom` times that. learn: the circuit also learns between presentations, and ranges are those of all that
    it goes through on the way; parameters then start where they started. table_bits: log2 of the entries of lookup
    tables. guard: further bits of integrators; without, as many as their rate halves. Raises CompileError for what
    fixed point cannot do exactly.
    """
    seen = _Ranges()
    seen.run(net, presentations, ticks, learn)
    coarse = (state_bits, state_bits - (STATE[0] - STATE[1]))
    formats: dict[str, Bits] = {}
    populations: dict[str, Population] = {}
    for name, p in net.spec.populations.items():
        most = max(seen.states[name], seen.inputs[name])
        formats[name] = fitting(np.array(most), state_bits, margin) if most else coarse
        more: dict[str, object] = {"bits": formats[name]}
        if p.unit == "map" and p.function not in EXACT_FUNCTIONS:
            more["table"] = (table_bits, _reach(p, formats[name], margin * seen.inputs[name]))
        if p.unit == "integrator" and guard is not None:
            more["guard"] = guard
        populations[name] = msgspec.structs.replace(p, **more)
    params = _params(net, seen.params, weight_bits, state_bits, headroom)
    arrays = {name: _rounded(array, params[name]) if name in params else array for name, array in net.tensors.items()}
    described = {name: _described(net.spec, name, arrays[name], params.get(name)) for name in arrays}
    spec = msgspec.structs.replace(net.spec, populations=populations, tensors=described)
    check(spec, arrays, Formats.of(spec, arrays), 1)
    return replace(net, spec=spec, tensors=arrays)


class _Observer(Simulator):
    """A simulator that notes the largest number at the ports of maps and products."""

    def __init__(self, spec: Spec, tensors: Tensors, replicas: int, inputs: dict[str, float]) -> None:
        self.inputs = inputs
        super().__init__(spec, tensors, replicas)

    def mapped(self, name: str, port: Tensor) -> Tensor:
        self.inputs[name] = max(self.inputs[name], largest(port))
        return super().mapped(name, port)

    def multiplied(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        self.inputs[name] = max(self.inputs[name], largest(x), largest(y))
        return super().multiplied(name, x, y)


class _Ranges:
    """The largest state of each population, number at its ports, and entry of each parameter."""

    def __init__(self) -> None:
        self.states: dict[str, float] = defaultdict(float)
        self.inputs: dict[str, float] = defaultdict(float)
        self.params: dict[str, float] = defaultdict(float)

    def run(self, net: Netlist, presentations: Iterable[Presentation], ticks: int | None, learn: bool) -> None:
        """Note what the presentations bring about, one after another."""
        lengths = {p.name: p.ticks for p in net.spec.phases}
        plan = ["settle"] * (lengths.get("settle", 1) if ticks is None else ticks)
        plan += ["learn"] * (lengths.get("learn", 1) if learn else 0)
        observer: _Observer | None = None
        for presentation in presentations:
            replicas = max((len(v) for v in presentation.values()), default=1)
            if observer is None or observer.replicas != replicas:
                params = {} if observer is None else {n: p.numpy() for n, p in observer.params.items()}
                observer = _Observer(net.spec, {**net.tensors, **params}, replicas, self.inputs)
            for name, value in presentation.items():
                observer.set(name, torch.from_numpy(value))
            for phase in plan:
                observer.tick(phase)
                for name, state in observer.states.items():
                    self.states[name] = max(self.states[name], largest(state))
            for name, param in observer.params.items():
                self.params[name] = max(self.params[name], largest(param))


def largest(values: Tensor) -> float:
    """The largest magnitude of values, left aside those that stand for an infinity."""
    size = values.abs()
    size = size[size < -FLOOR / 2]
    return float(size.max()) if size.numel() else 0.0


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


def _params(
    net: Netlist, seen: Mapping[str, float], weight_bits: int, state_bits: int, headroom: float
) -> dict[str, Bits]:
    """The format of each parameter and constant."""
    spec, plastic = net.spec, net.spec.plastic()
    weights = {p.param for p in spec.projections}
    found: dict[str, Bits] = {}
    for name, array in net.tensors.items():
        if array.dtype.kind != "f":
            continue
        most = max(largest(torch.from_numpy(array)), seen.get(name, 0.0)) * (headroom if name in plastic else 1.0)
        if name not in weights and name in plastic:
            most = max(most, BIAS_RANGE)
        found[name] = fitting(np.array(most), weight_bits if name in weights else state_bits)
    return found


def _rounded(array: np.ndarray, bits: Bits) -> np.ndarray:
    return reals(integers(torch.from_numpy(array), bits), bits).numpy().astype(array.dtype)


def _described(spec: Spec, name: str, array: np.ndarray, bits: Bits | None) -> fmt.Tensor:
    return msgspec.structs.replace(spec.tensors.get(name) or fmt.Tensor.of(array), bits=bits)


__all__ = ["Presentation", "quantise"]
