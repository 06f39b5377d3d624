"""The reference semantics in float64: all units in step, integrators and parameters latch at the end of a tick."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors, order, ports_of
from pccompile.backends.netlist.operations import Change, Message, learning_rule, operation
from pccompile.diagnostics import CompileError

Watch = Callable[[int, Mapping[str, Tensor]], None]
"""Called at the end of each tick with its number, from 1 on, and the states."""


def refuse_undefined(what: str, values: Any) -> None:
    """Raise CompileError where there is nan or an infinity among the numbers presented to `what`."""
    array = np.asarray(values)
    wrong = ~np.isfinite(array) if array.dtype.kind in "fc" else np.zeros(array.shape, dtype=bool)
    if wrong.any():
        first = np.unravel_index(int(wrong.argmax()), array.shape)
        amount = f"{int(wrong.sum())} of {array.size} entries are not finite"
        raise CompileError(
            f"{what} holds {array[first]} at {[int(i) for i in first]} ({amount})",
            hint="units hold finite numbers; what stands for −∞ in a mask is −1e30",
        )


class Simulator:
    """A netlist with states `[replicas, *shape]` and parameters, that ticks.

    Replicas are independent presentations which share parameters: a learning tick adds up what each asks for.
    Integrators start at 0. A message and a state are made anew only when something that they are made of has changed:
    where inputs stand still, value units cost nothing after the first tick.
    """

    def __init__(self, spec: Spec, tensors: Tensors, replicas: int = 1) -> None:
        self.spec, self.replicas = spec, replicas
        self.order = order(spec)
        self.into = spec.into()
        self.params = {
            name: torch.from_numpy(array.astype(np.float64))
            for name, array in tensors.items()
            if array.dtype.kind == "f"
        }
        self.ranks = {n: torch.from_numpy(a) for n, a in tensors.items() if a.dtype.kind in "iu"}
        self.messages: dict[str, Message] = {
            p.name: operation(p, spec.populations, tensors).message() for p in spec.projections
        }
        self.changes: list[tuple[Plasticity, Change]] = [
            (rule, learning_rule(rule, spec, tensors).change()) for rule in spec.plasticity
        ]
        self.integrators = [name for name, p in spec.populations.items() if p.unit == "integrator"]
        self.delays = dict.fromkeys(spec.populations, 0)
        for p in spec.projections:
            self.delays.update({n: max(p.delay, self.delays[n]) for n in p.reads})
        self.rates: dict[str, float | Tensor] = {n: spec.populations[n].rate for n in self.integrators}
        self.room: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all states; parameters stay."""
        self.states: dict[str, Tensor] = {
            name: torch.zeros(self.replicas, *p.shape, dtype=torch.float64) for name, p in self.spec.populations.items()
        }
        self.winners: dict[str, Tensor] = {}
        self.made: dict[str, tuple[tuple[tuple[Tensor | None, int], ...], Tensor]] = {}
        self.past: dict[str, deque[Tensor]] = {
            n: deque([self.states[n]] * d, maxlen=d) for n, d in self.delays.items() if d
        }
        self.time = 0

    def set(self, population: str, value: Tensor) -> None:
        """Set the state of an input population, `[replicas, *shape]` or one for all replicas."""
        shape = self.spec.populations[population].shape
        value = torch.as_tensor(value, dtype=torch.float64)
        if value.numel() == self.states[population].numel():
            self.states[population] = value.reshape(self.replicas, *shape).clone()
        else:
            self.states[population] = value.reshape(1, *shape).expand(self.replicas, *shape).clone()

    def run(self, phases: Iterable[tuple[str, int]], watch: Watch | None = None) -> None:
        """Run the named phases, each for so many ticks."""
        for name, ticks in phases:
            for _ in range(ticks):
                self.tick(name)
                if watch is not None:
                    watch(self.time, self.values())

    def value(self, name: str) -> Tensor:
        """The state of a population as real numbers."""
        return self.states[name]

    def values(self) -> Mapping[str, Tensor]:
        """The states as real numbers."""
        return {name: self.value(name) for name in self.states}

    def undefined(self) -> str:
        """The first population, in the order of evaluation, or parameter with nan or an infinity, in words; '' if none.

        A population that holds one only because of another comes after that one, delays and cycles left aside.
        """
        inputs = [n for n, p in self.spec.populations.items() if p.unit == "input"]
        populations = [(f"population {n}", self.states[n], "units") for n in (*inputs, *self.order, *self.integrators)]
        for name, values, what in (*populations, *((f"parameter {n}", p, "entries") for n, p in self.params.items())):
            if wrong := int((~values.isfinite()).sum()):
                kind = "nan" if bool(values.isnan().any()) else "an infinity"
                amount = f"{wrong} of {values.numel()} {what} are not finite"
                return f"{name} holds {kind} after {self.time} ticks ({amount})"
        return ""

    def parameters(self) -> Mapping[str, Tensor]:
        """The parameters as real numbers."""
        return self.params

    def saturations(self) -> dict[str, int]:
        """The units of each population, and entries of each parameter, that did not fit their formats: here none."""
        return {}

    def tick(self, phase: str) -> None:
        """One tick: combinational units in order, then everything that latches, from the same states."""
        for name in self.order:
            self.states[name] = self.combine(name)
        latched = {name: self.integrated(name) for name in self.integrators}
        change = self.learn(phase)
        for name, past in self.past.items():
            past.append(self.states[name])
        self.states.update(latched)
        change()
        self.time += 1

    def read(self, p: Projection) -> Tensor:
        """The states of `pre` that a projection carries now."""
        return self.carried(p, p.pre)

    def carried(self, p: Projection, population: str) -> Tensor:
        """The states of a population that a projection carries now."""
        return self.past[population][-p.delay] if p.delay else self.states[population]

    def arrived(self, p: Projection) -> Tensor:
        """What a projection delivers."""
        carried = self.read(p)
        operand = carried if p.with_ == p.pre else self.operand(p)
        return self.fresh(p.name, (carried, operand), lambda: self.scaled(p, self.messages[p.name](carried, operand)))

    def operand(self, p: Projection) -> Tensor | None:
        """What the messages of a projection are made of besides the states that it carries."""
        if p.param is not None:
            return self.params[p.param]
        if p.with_ is not None:
            return self.carried(p, p.with_)
        return None if p.by is None else self.winners[p.by]

    def fresh(self, name: str, sources: tuple[Tensor | None, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made again only when one of `sources` is another tensor than last time, or was changed."""
        known = self.made.get(name)
        if known is not None and len(known[0]) == len(sources):
            for (tensor, version), source in zip(known[0], sources, strict=True):
                if tensor is not source or (source is not None and source._version != version):
                    break
            else:
                return known[1]
        value = make()
        self.made[name] = tuple((s, s._version if s is not None else 0) for s in sources), value
        return value

    def scaled(self, p: Projection, got: Tensor) -> Tensor:
        """`got` times the gain of a projection."""
        return got if p.gain == 1 else got * p.gain

    def ports(self, name: str) -> dict[str, Tensor]:
        """The sum of what arrives at each port of a population."""
        return self.added(name, [self.arrived(p) for p in self.into[name]])

    def added(self, name: str, arrived: list[Tensor]) -> dict[str, Tensor]:
        """The sums of messages, one from each projection into a population, by port."""
        sums: dict[str, Tensor] = {}
        for p, got in zip(self.into[name], arrived, strict=True):
            sums[p.port] = sums[p.port] + got if p.port in sums else got
        for port in ports_of(self.spec.populations[name].unit):
            if port not in sums:
                sums[port] = torch.zeros(self.replicas, *self.spec.populations[name].shape, dtype=torch.float64)
        return sums

    def bias(self, name: str) -> Tensor | None:
        """The bias of a population, ready to be added."""
        p = self.spec.populations[name]
        if p.bias is None:
            return None
        bias = self.params[p.bias]
        if p.bias_axis is None:
            return bias.reshape(p.shape)
        return bias.reshape([-1 if i == p.bias_axis else 1 for i in range(len(p.shape))])

    def combine(self, name: str) -> Tensor:
        """The state of a combinational population."""
        p = self.spec.populations[name]
        if p.unit == "select":
            (source,) = self.into[name]
            carried = self.read(source)
            return self.fresh(name, (carried,), lambda: self.select(name, source, carried))
        arrived = [self.arrived(p) for p in self.into[name]]
        bias = self.params[p.bias] if p.bias is not None else None
        return self.fresh(name, (*arrived, bias), lambda: self.state(name, self.added(name, arrived)))

    def state(self, name: str, ports: Mapping[str, Tensor]) -> Tensor:
        """The state of a combinational population from what has arrived at its ports."""
        match self.spec.populations[name].unit:
            case "product":
                return self.multiplied(name, ports["x"], ports["y"])
            case "map":
                return self.mapped(name, ports["in"])
            case _:
                return self.summed(name, ports["in"])

    def summed(self, name: str, port: Tensor) -> Tensor:
        """The state of a `sum` population."""
        bias = self.bias(name)
        return port if bias is None else port + bias

    def mapped(self, name: str, port: Tensor) -> Tensor:
        """The state of a `map` population."""
        return function(str(self.spec.populations[name].function))(port)

    def multiplied(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """The state of a `product` population."""
        return x * y

    def select(self, name: str, source: Projection, states: Tensor) -> Tensor:
        """The winners' messages; which slot won is noted. Ties go to the slot that comes first."""
        p = self.spec.populations[name]
        index = self.ranks[str(source.index)].long()
        carried = states.reshape(len(states), -1)[:, index.clamp(min=0)]
        upwards = (source.gain < 0) == p.smallest
        candidates = torch.where(index < 0, -torch.inf, carried if upwards else -carried)
        if p.ranks is None:
            slots = candidates.argmax(-1, keepdim=True)
        else:
            ordered = candidates.sort(dim=-1, descending=True, stable=True).indices
            ranks = self.ranks[p.ranks].long().reshape(1, -1, 1).expand(self.replicas, -1, 1)
            slots = ordered.gather(-1, ranks)
        self.winners[name] = slots[..., 0].reshape(self.replicas, *p.shape)
        return self.scaled(source, carried.gather(-1, slots)[..., 0].reshape(self.replicas, *p.shape))

    def integrated(self, name: str) -> Tensor:
        """The next state of an integrator."""
        p, state = self.spec.populations[name], self.states[name]
        arriving = self.ports(name)["in"]
        return state + self.rates[name] * (arriving - p.leak * state if p.leak else arriving)

    def learn(self, phase: str) -> Callable[[], None]:
        """What this tick's plasticity asks for, found; the call changes the parameters."""
        totals: dict[str, Tensor] = {}
        for rule, products in self.changes:
            if rule.phase != phase:
                continue
            pre, param = self.states[rule.pre] if rule.pre is not None else None, self.params[rule.param]
            further = totals.get(rule.param)
            if further is not None or rule.param not in self.room:
                self.room[rule.param] = torch.empty_like(param)
            step = self.step(rule, products(pre, self.states[rule.post], self.room[rule.param]))
            totals[rule.param] = step if further is None else further + step

        def change() -> None:
            for name, total in totals.items():
                self.move(name, total)

        return change

    def step(self, rule: Plasticity, found: Tensor) -> Tensor:
        """What a rule adds to its parameter where its sum of products is `found`, which may be overwritten."""
        step = found.mul_(rule.rate * rule.gain)
        return step.sub_(self.params[rule.param], alpha=rule.rate * rule.decay) if rule.decay else step

    def move(self, name: str, total: Tensor) -> None:
        """Change a parameter in its place."""
        self.params[name].add_(total)
