"""Out of step: units act in random order, messages come late or not at all, integrators run at rates of their own.

The circuit of fixed prediction is a graph without cycles of leaky integrators, each drawn to what arrives: whatever the
order and however late, errors settle on the exact gradient, as long as every message arrives now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccompile.backends.netlist.format import Projection, Spec, Tensors
from pccompile.backends.netlist.simulate.fixed import FixedSimulator
from pccompile.backends.netlist.simulate.synchronous import Simulator
from pccompile.diagnostics import CompileError


@dataclass(frozen=True)
class Asynchrony:
    """How far from lockstep a circuit runs. A message is what one unit sends through one projection in one tick.

    loss: the probability that a message is lost; its receivers go on with the last that arrived. delay: the most ticks
    that a message is late, drawn for each anew, so that they overtake one another. activity: the probability that a
    unit acts in a tick. spread: the rate of each integrator unit is drawn once between rate (1 − spread) and
    rate (1 + spread).
    """

    loss: float = 0.0
    delay: int = 0
    activity: float = 0.5
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.loss < 1 and self.delay >= 0 and 0 < self.activity <= 1 and 0 <= self.spread < 1):
            raise CompileError("0 ≤ loss < 1, 0 ≤ delay, 0 < activity ≤ 1 and 0 ≤ spread < 1 are what can be simulated")


class AsynchronousSimulator(Simulator):
    """A netlist whose populations act in a new order in each tick, one after another, a part of their units each."""

    def __init__(
        self,
        asynchrony: Asynchrony,
        spec: Spec,
        tensors: Tensors,
        replicas: int = 1,
        *,
        seed: int = 0,
        **more: Any,
    ) -> None:
        self.asynchrony, self.chance = asynchrony, torch.Generator().manual_seed(seed)
        super().__init__(spec, tensors, replicas, **more)
        self.acting = (*self.order, *self.integrators)
        for name in self.integrators if asynchrony.spread else ():
            rate, shape = self.spec.populations[name].rate, self.states[name].shape
            self.rates[name] = rate * (1 + asynchrony.spread * (2 * self.draw(shape[1:]) - 1))
            if float(torch.as_tensor(self.rates[name]).max()) >= 2:
                raise CompileError(f"with that spread, some units of {name} have rates from 2 on and never settle")

    def reset(self) -> None:
        """Forget all states and all messages under way; parameters stay."""
        super().reset()
        depth = 1 + self.asynchrony.delay
        self.recent = {n: torch.zeros(depth + self.delays[n], *s.shape, dtype=s.dtype) for n, s in self.states.items()}
        self.held = {(p.name, n): torch.zeros_like(self.states[n]) for p in self.spec.projections for n in p.reads}
        for name, p in self.spec.populations.items():
            if p.unit == "select":
                self.winners[name] = torch.zeros_like(self.states[name], dtype=torch.int64)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Random numbers from 0 to 1."""
        return torch.rand(shape, generator=self.chance, dtype=torch.float64)

    def note(self, name: str) -> None:
        """Remember what a population sends now."""
        self.recent[name][self.time % len(self.recent[name])] = self.states[name]

    def tick(self, phase: str) -> None:
        """One tick: all populations in a random order, each reading what has arrived; then parameters change."""
        for name in self.states:
            self.note(name)
        for i in torch.randperm(len(self.acting), generator=self.chance).tolist():
            name = self.acting[i]
            state = self.states[name]
            self.awake = self.draw(state.shape) < self.asynchrony.activity
            acts = self.integrated if self.spec.populations[name].unit == "integrator" else self.combine
            self.states[name] = torch.where(self.awake, acts(name), state)
            self.note(name)
        self.learn(phase)()
        self.time += 1

    def carried(self, p: Projection, population: str) -> Tensor:
        """The last messages of a population through a projection that have arrived."""
        sent, slots = self.recent[population], len(self.recent[population])
        late = torch.full(sent.shape[1:], p.delay)
        if self.asynchrony.delay:
            late += torch.randint(self.asynchrony.delay + 1, late.shape, generator=self.chance)
        got = sent.gather(0, ((self.time - late) % slots)[None])[0]
        if self.asynchrony.loss:
            got = torch.where(self.draw(got.shape) < self.asynchrony.loss, self.held[p.name, population], got)
        self.held[p.name, population] = got
        return got

    def select(self, name: str, source: Projection, states: Tensor) -> Tensor:
        """The winners' messages; units that do not act keep the winner that they have."""
        before = self.winners[name]
        won = super().select(name, source, states)
        self.winners[name] = torch.where(self.awake, self.winners[name], before)
        return won


class AsynchronousFixedSimulator(AsynchronousSimulator, FixedSimulator):
    """The same in fixed point. Raises CompileError for rates that differ from unit to unit."""

    def __init__(self, asynchrony: Asynchrony, spec: Spec, tensors: Tensors, replicas: int = 1, **more: Any) -> None:
        if asynchrony.spread:
            raise CompileError("integrators of fixed point shift by their rate: they have no spread")
        super().__init__(asynchrony, spec, tensors, replicas, **more)

    def integrated(self, name: str) -> Tensor:
        """The next state of an integrator; the accumulators of units that do not act stay."""
        before = self.accumulators[name]
        state = super().integrated(name)
        self.accumulators[name] = torch.where(self.awake, self.accumulators[name], before)
        return state
