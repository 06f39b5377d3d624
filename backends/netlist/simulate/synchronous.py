"""The reference semantics in float64: all units in step, integrators and parameters latch at the end of a tick."""

from __future__ import annotations

from collections import defaultdict, deque
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
        got = self.messages[p.name](self.read(p), param, winners)
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
        p = self.spec.populations[name]
        if p.unit == "select":
            return self.select(name)
        ports = self.ports(name)
        if p.unit == "product":
            return ports["x"] * ports["y"]
        if p.unit == "map":
            return function(str(p.function))(ports["in"])
        bias = self.bias(name)
        return ports["in"] if bias is None else ports["in"] + bias

    def select(self, name: str) -> Tensor:
        """The winners' states; which slot won is noted. Ties go to the slot that comes first."""
        p, (source,) = self.spec.populations[name], self.into[name]
        index = self.ranks[str(source.index)].long()
        candidates = self.read(source).flatten(1)[:, index.clamp(min=0)] * (-1 if p.smallest else 1) * source.gain
        candidates = torch.where(index < 0, -torch.inf, candidates)
        if p.ranks is None:
            slots = candidates.argmax(-1, keepdim=True)
        else:
            ordered = candidates.sort(dim=-1, descending=True, stable=True).indices
            ranks = self.ranks[p.ranks].long().reshape(1, -1, 1).expand(self.replicas, -1, 1)
            slots = ordered.gather(-1, ranks)
        self.winners[name] = slots[..., 0].reshape(self.replicas, *p.shape)
        won = candidates.gather(-1, slots)[..., 0] * (-1 if p.smallest else 1)
        return won.reshape(self.replicas, *p.shape)

    def integrated(self, name: str) -> Tensor:
        """The next state of an integrator."""
        p, state = self.spec.populations[name], self.states[name]
        return state + p.rate * (self.ports(name)["in"] - p.leak * state)

    def learned(self, phase: str) -> dict[str, Tensor]:
        """The parameters after this tick's plasticity."""
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        for rule, delta in self.changes:
            if rule.phase == phase:
                pre = self.states[rule.pre] if rule.pre is not None else None
                param = self.params[rule.param]
                found = rule.gain * delta(pre, self.states[rule.post], tuple(param.shape))
                if rule.decay:
                    found = found - rule.decay * param
                sums[rule.param] = sums[rule.param] + rule.rate * found
        return {name: self.params[name] + total for name, total in sums.items()}
