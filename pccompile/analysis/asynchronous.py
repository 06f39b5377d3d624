"""Inference without a clock: vertices wake in any order, and messages between them are late or lost.

A vertex that wakes reads what it last heard, sends a message to each parent, moves along its force, and shows its value
to its children. What is lost is not sent again: the receiver goes on with what it has.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """How vertices and messages behave.

    together: all vertices look, then all move, as a clock would have them; otherwise they wake one by one, each once
    in a round, in an order that is drawn anew. delay: a message takes 0 to so many rounds, drawn each time. loss: the
    part of messages that does not arrive. rates: each vertex has its own step, the rate times a factor drawn between
    these two.
    """

    name: str
    together: bool = False
    delay: int = 0
    loss: float = 0.0
    rates: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Woken:
    """What a vertex has when it has looked: what it sends, what holds it, its multiplier, a message to each parent."""

    sent: Tensor
    held: Tensor | None
    multiplier: Tensor | None
    messages: Mapping[str, Tensor]


class Units(Protocol):
    """The vertices of a network: compiled rules, one vertex at a time."""

    hidden: tuple[str, ...]
    outputs: tuple[str, ...]
    views: dict[str, list[str]]
    """For each vertex, the hidden parents whose values it reads; none where predictions stay."""

    def start(self) -> dict[str, Tensor]:
        """What each hidden vertex moves, as inference begins."""

    def wake(
        self, name: str, own: Tensor | None, view: Mapping[str, Tensor], multiplier: Tensor | None, last: bool = False
    ) -> Woken:
        """What a vertex finds with what it knows; its multiplier stays where it is asked for the `last` time."""


@dataclass
class Run:
    """A network under way. `own` is what each hidden vertex moves: its value, or its error where predictions stay."""

    units: Units
    rate: float
    conditions: Conditions
    seed: int = 0
    arrived: int = 0
    lost: int = 0
    own: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.own, self.multiplier = self.units.start(), dict[str, Tensor]()
        self.seen = {
            v: {p: self.own[p] for p in self.units.views[v]} for v in (*self.units.hidden, *self.units.outputs)
        }
        self.heard: dict[str, dict[str, Tensor]] = {v: {} for v in self.units.hidden}
        self.round = 0
        self.pending: list[tuple[int, int, str, str, bool, Tensor]] = []
        self.newest: dict[tuple[str, str, bool], int] = {}
        self.readers: dict[str, list[str]] = {v: [] for v in self.units.hidden}
        for v, parents in self.units.views.items():
            for p in parents:
                self.readers[p].append(v)
        low, high = self.conditions.rates
        self.rates = {v: self.rate * self.draw.uniform(low, high) for v in self.units.hidden}

    def rounds(self, count: int) -> None:
        """Go on for so many rounds."""
        names = [*self.units.hidden, *self.units.outputs]
        for _ in range(count):
            self.round += 1
            self._arrive()
            if self.conditions.together:
                found = {v: self._look(v) for v in names}
                for v, woken in found.items():
                    self._tell(v, woken)
                for v in self.units.hidden:
                    self._move(v, found[v])
            else:
                self.draw.shuffle(names)
                for v in names:
                    woken = self._look(v)
                    self._tell(v, woken)
                    if v in self.own:
                        self._move(v, woken)

    def look(self) -> dict[str, Tensor]:
        """What every vertex would send at the present values, as at the end of inference; the run stays as it is."""
        found = {}
        for v in (*self.units.hidden, *self.units.outputs):
            view = {p: self.own[p] for p in self.units.views[v]}
            found[v] = self.units.wake(v, self.own.get(v), view, self.multiplier.get(v), last=True).sent
        return found

    def _look(self, v: str) -> Woken:
        woken = self.units.wake(v, self.own.get(v), self.seen[v], self.multiplier.get(v))
        if woken.multiplier is not None:
            self.multiplier[v] = woken.multiplier
        return woken

    def _tell(self, v: str, woken: Woken) -> None:
        for parent, message in woken.messages.items():
            self._send(v, parent, False, message)

    def _move(self, v: str, woken: Woken) -> None:
        assert woken.held is not None
        force = sum(self.heard[v].values(), -woken.held)
        self.own[v] = self.own[v] + self.rates[v] * force
        for reader in self.readers[v]:
            self._send(v, reader, True, self.own[v])

    def _send(self, sender: str, receiver: str, value: bool, content: Tensor) -> None:
        if self.draw.random() < self.conditions.loss:
            self.lost += 1
            return
        late = self.draw.randint(0, self.conditions.delay)
        if late:
            self.pending.append((self.round + late, self.round, sender, receiver, value, content))
        else:
            self._take(self.round, sender, receiver, value, content)

    def _arrive(self) -> None:
        due = [m for m in self.pending if m[0] <= self.round]
        self.pending = [m for m in self.pending if m[0] > self.round]
        for _, when, sender, receiver, value, content in due:
            self._take(when, sender, receiver, value, content)

    def _take(self, when: int, sender: str, receiver: str, value: bool, content: Tensor) -> None:
        """Read a message, unless a newer one of the same kind has come before it."""
        key = (sender, receiver, value)
        if when < self.newest.get(key, 0):
            return
        self.newest[key] = when
        self.arrived += 1
        (self.seen if value else self.heard)[receiver][sender] = content
