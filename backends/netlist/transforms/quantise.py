"""Fixed point for a netlist: a format for every population and parameter, from the ranges seen in floating point."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist import format as fmt
from pccompile.backends.netlist.circuit import FLOOR
from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Population, Spec, Tensors, ports_of
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
from pccompile.backends.netlist.simulate.synchronous import Simulator, refuse_undefined
from pccompile.diagnostics import CompileError

Presentation = Mapping[str, np.ndarray]
"""The states of input populations, `[replicas, *shape]`: what `Netlist.presentation` gives."""

DIVERGED = 2.0
"""Learning diverges in a calibration where the norm of the errors has grown by this factor when it ends."""

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

    Each population gets the finest fraction that holds `margin` times the largest number seen in it, and each port of a
    map or a product one for what was seen there, while the presentations settle for `ticks`; errors, being smaller than
    values, get finer ones. A port whose table ends earlier holds no more than the table. Without presentations all have
    six bits before the point. Weights get the power-of-two scale that holds their largest entry, those that
    learn `headroom` times that. learn: the circuit also learns between presentations, and ranges are those of all that
    it goes through on the way; parameters then start where they started. table_bits: log2 of the entries of lookup
    tables. guard: further bits of integrators; without, as many as their rate halves. Raises CompileError for what
    fixed point cannot do exactly, and where the calibration diverges: a state that is not finite, or learning that
    makes errors larger.
    """
    seen = _Ranges()
    seen.run(net, tuple(presentations), ticks, learn)
    coarse = (state_bits, state_bits - (STATE[0] - STATE[1]))
    formats: dict[str, Bits] = {}
    populations: dict[str, Population] = {}
    for name, p in net.spec.populations.items():
        most = seen.states[name]
        formats[name] = fitting(np.array(most), state_bits, margin) if most else coarse
        more: dict[str, object] = {"bits": formats[name]}
        if p.unit in ("map", "product"):
            arriving = [margin * seen.ports[name, port] for port in ports_of(p.unit)]
            if p.unit == "map" and p.function not in EXACT_FUNCTIONS:
                reach = _reach(p, formats[name], arriving[0], table_bits)
                more["table"], arriving = (table_bits, reach), [min(arriving[0], 2.0**reach)]
            at_ports = tuple(fitting(np.array(a), state_bits) if a else coarse for a in arriving)
            more["port_bits"] = at_ports if any(bits != formats[name] for bits in at_ports) else None
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

    def __init__(self, spec: Spec, tensors: Tensors, replicas: int, largest_at: dict[tuple[str, str], float]) -> None:
        self.largest_at = largest_at
        super().__init__(spec, tensors, replicas)

    def mapped(self, name: str, port: Tensor) -> Tensor:
        self.arrive(name, "in", port)
        return super().mapped(name, port)

    def multiplied(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        self.arrive(name, "x", x)
        self.arrive(name, "y", y)
        return super().multiplied(name, x, y)

    def arrive(self, name: str, port: str, total: Tensor) -> None:
        """Note the sum at a port."""
        self.largest_at[name, port] = max(self.largest_at[name, port], largest(total))


class _Ranges:
    """The largest state of each population, sum at each port, and entry of each parameter."""

    def __init__(self) -> None:
        self.states: dict[str, float] = defaultdict(float)
        self.ports: dict[tuple[str, str], float] = defaultdict(float)
        self.params: dict[str, float] = defaultdict(float)
        self.learned: Mapping[str, np.ndarray] = {}

    def run(self, net: Netlist, presentations: Sequence[Presentation], ticks: int | None, learn: bool) -> None:
        """Note what the presentations bring about, one after another. Raises CompileError where that diverges."""
        lengths = {p.name: p.ticks for p in net.spec.phases}
        plan = ["settle"] * (lengths.get("settle", 1) if ticks is None else ticks)
        plan += ["learn"] * (lengths.get("learn", 1) if learn else 0)
        before = self._present(net, {}, presentations, plan)
        if learn:
            after = self._present(net, dict(self.learned), presentations, plan[: plan.index("learn")])
            if after > DIVERGED * before:
                raise CompileError(
                    f"the calibration diverges: learning takes the norm of the errors from {before:.3g} to {after:.3g}",
                    hint="a smaller eta, or inputs and targets of a smaller scale",
                )

    def _present(
        self, net: Netlist, params: Mapping[str, np.ndarray], presentations: Sequence[Presentation], plan: Sequence[str]
    ) -> float:
        """Note what happens from these parameters on; return the norm of all errors where they have settled."""
        observer: _Observer | None = None
        squares = 0.0
        for presentation in presentations:
            replicas = max((len(v) for v in presentation.values()), default=1)
            if observer is None or observer.replicas != replicas:
                self.learned = params if observer is None else {n: p.numpy() for n, p in observer.params.items()}
                observer = _Observer(net.spec, {**net.tensors, **self.learned}, replicas, self.ports)
            for name, value in presentation.items():
                refuse_undefined(f"population {name}", value)
                observer.set(name, torch.from_numpy(value))
            for i, phase in enumerate(plan):
                observer.tick(phase)
                for name, state in observer.states.items():
                    self.states[name] = max(self.states[name], largest(state))
                if phase == "settle" and plan[i + 1 : i + 2] != ["settle"]:
                    squares += sum(float(observer.states[n].square().sum()) for n in _errors(net.spec))
            _refuse_unbounded(observer)
            for name, param in observer.params.items():
                self.params[name] = max(self.params[name], largest(param))
        self.learned = {} if observer is None else {n: p.numpy() for n, p in observer.params.items()}
        return math.sqrt(squares)


def _errors(spec: Spec) -> list[str]:
    return [name for name, p in spec.populations.items() if p.role == "error"]


def _refuse_unbounded(observer: Simulator) -> None:
    """Raise CompileError where a state or a parameter is no number, or an error or a parameter beyond all bounds."""
    bounded = {**{n: observer.states[n] for n in _errors(observer.spec)}, **observer.params}
    for name, values in (*observer.states.items(), *bounded.items()):
        if not bool(values.isfinite().all()) or (name in bounded and bool((values.abs() > -FLOOR).any())):
            raise CompileError(f"the calibration diverges: {name} leaves all bounds", hint="a smaller eta or rate")


def largest(values: Tensor) -> float:
    """The largest magnitude of values, left aside those that stand for an infinity."""
    size = values.abs()
    size = size[size < -FLOOR / 2]
    return float(size.max()) if size.numel() else 0.0


def _reach(p: Population, bits: Bits, seen: float, table_bits: int) -> int:
    """Log2 of the range of a map's table: what was seen, or less where the function is flat from there on."""
    f, unit = function(str(p.function)), 2.0 ** -bits[1]
    widest = reach = math.ceil(math.log2(seen)) if seen else 3
    ends = {side: f(torch.tensor(side * 2.0**reach, dtype=torch.float64)) for side in (-1.0, 1.0)}

    def flat(x: Tensor) -> bool:
        """Whether the function is at positive x, and at −x, what it is at the ends."""
        bends = ((f(side * x) - end).abs().nan_to_num(nan=torch.inf).max() for side, end in ends.items())
        return max(map(float, bends)) <= unit / 2

    while reach > -4 and flat(torch.linspace(2.0 ** (reach - 1), 2.0**reach, 65, dtype=torch.float64)):
        reach -= 1
    # What lies beyond a table falls on its last entry, which a step at the very edge makes another number.
    last = torch.tensor([2.0**reach - 2.0 ** (reach - table_bits)], dtype=torch.float64)
    return min(widest, reach + (not flat(last)))


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
