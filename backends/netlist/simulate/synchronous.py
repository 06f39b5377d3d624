"""The reference semantics in float64: all units in step, integrators and parameters latch at the end of a tick."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors, order, ports_of
from pccompile.backends.netlist.simulate.operators import Change, Message, change, message

Watch = Callable[[int, Mapping[str, Tensor]], None]
"""Called at the end of each tick with its number, from 1 on, and the states."""


class Simulator:
    """A netlist with states `[replicas, *shape]` and parameters, that ticks.

    Replicas are independent presentations which share parameters: a learning tick adds up what each asks for.
    Integrators start at 0.
    """

    def __init__(self, spec: Spec, tensors: Tensors, replicas: int = 1) -> None:
        self.spec, self.replicas = spec, replicas
        self.order = order(spec)
        self.into = spec.into()
        self.params = {
            name: torch.from_numpy(array.copy()) for name, array in tensors.items() if array.dtype.kind == "f"
        }
        self.ranks = {n: torch.from_numpy(a) for n, a in tensors.items() if a.dtype.kind in "iu"}
        self.messages: dict[str, Message] = {p.name: message(p, spec, tensors) for p in spec.projections}
        self.changes: list[tuple[Plasticity, Change]] = [(r, change(r, spec, tensors)) for r in spec.plasticity]
        self.integrators = [name for name, p in spec.populations.items() if p.unit == "integrator"]
        self.delays = {n: max((p.delay for p in spec.projections if p.pre == n), default=0) for n in spec.populations}
        self.reset()

    def reset(self) -> None:
        """Forget all states; parameters stay."""
        self.states: dict[str, Tensor] = {
            name: torch.zeros(self.replicas, *p.shape, dtype=torch.float64) for name, p in self.spec.populations.items()
        }
        self.winners: dict[str, Tensor] = {}
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
                    watch(self.time, self.states)

    def tick(self, phase: str) -> None:
        """One tick: combinational units in order, then everything that latches, from the same states."""
        for name in self.order:
            self.states[name] = self.combine(name)
        latched = {name: self.integrated(name) for name in self.integrators}
        changed = self.learned(phase)
        for name, past in self.past.items():
            past.append(self.states[name])
        self.states.update(latched)
        self.params.update(changed)
        self.time += 1

    def read(self, p: Projection) -> Tensor:
        """The states that a projection carries now."""
        return self.past[p.pre][-p.delay] if p.delay else self.states[p.pre]

    def arrived(self, p: Projection) -> Tensor:
        """What a projection delivers."""
        param = self.params[p.param] if p.param is not None else None
        winners = self.winners[p.by] if p.by is not None else None
        return self.scaled(p, self.messages[p.name](self.read(p), param, winners))

    def scaled(self, p: Projection, got: Tensor) -> Tensor:
        """`got` times the gain of a projection."""
        return got if p.gain == 1 else got * p.gain

    def ports(self, name: str) -> dict[str, Tensor]:
        """The sum of what arrives at each port of a population."""
        sums: dict[str, Tensor] = {}
        for p in self.into[name]:
            got = self.arrived(p)
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
        match self.spec.populations[name].unit:
            case "select":
                return self.select(name)
            case "product":
                ports = self.ports(name)
                return self.multiplied(name, ports["x"], ports["y"])
            case "map":
                return self.mapped(name, self.ports(name)["in"])
            case _:
                return self.summed(name, self.ports(name)["in"])

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

    def select(self, name: str) -> Tensor:
        """The winners' messages; which slot won is noted. Ties go to the slot that comes first."""
        p, (source,) = self.spec.populations[name], self.into[name]
        index = self.ranks[str(source.index)].long()
        carried = self.read(source).flatten(1)[:, index.clamp(min=0)]
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
        return state + p.rate * (self.ports(name)["in"] - p.leak * state)

    def learned(self, phase: str) -> dict[str, Tensor]:
        """The parameters after this tick's plasticity."""
        sums: dict[str, Tensor] = {}
        for rule, delta in self.changes:
            if rule.phase == phase:
                pre = self.states[rule.pre] if rule.pre is not None else None
                found = delta(pre, self.states[rule.post], tuple(self.params[rule.param].shape))
                step = self.step(rule, found)
                sums[rule.param] = sums[rule.param] + step if rule.param in sums else step
        return {name: self.moved(name, total) for name, total in sums.items()}

    def step(self, rule: Plasticity, found: Tensor) -> Tensor:
        """What a rule adds to its parameter where its sum of products is `found`."""
        step = found * (rule.rate * rule.gain)
        return step - rule.rate * rule.decay * self.params[rule.param] if rule.decay else step

    def moved(self, name: str, total: Tensor) -> Tensor:
        """A parameter with the sum of its changes."""
        return self.params[name] + total
