"""The programs of one model: one list of captures for each state that the model has been in."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from pccompile.frontends.imported import Imported
from pccompile.frontends.places import SKIPPED, Place, leaves_of
from pccompile.frontends.tensor_forms import strides
from pccompile.passes.activity import active
from pccompile.passes.roles import Roles
from pccompile.runtime.loaded_program import FORMS, Interface, Runtime
from pccompile.runtime.loss_state import LossState
from pccompile.runtime.model_state import ModelState, Tables

MANY = 4
"""So many programs of one capture become outdated without a word."""
STATES = 8
"""How many states of a model keep their programs; the one that was left longest ago goes first."""


class CallKey(NamedTuple):
    """What a call has at hand that decides which program it uses. Calls look it up by a plain tuple, which is equal.

    params, inputs, states: which of them require a gradient. target: the form of what a loss reads, () without one.
    """

    params: tuple[bool, ...]
    inputs: tuple[bool, ...]
    states: tuple[bool, ...]
    loss: LossState | None
    target: tuple[Any, ...]
    record: bool
    roles: Roles


class ProgramKey(NamedTuple):
    """What a program is for: the leaves whose gradients it computes, and the rest as in a `CallKey`."""

    wanted: frozenset[str]
    loss: LossState | None
    target: tuple[Any, ...]
    record: bool
    roles: Roles


@dataclass
class Captured:
    """The model as it was captured in one state for one form of call.

    `settings` are those of torch then. `learning` says which tensors required a gradient, `offsets` where in their
    memory the model's tensors started; each where it matters. `recent` leads to `programs` from what calls have at
    hand. `outdated` counts programs whose custom backwards read what has changed.
    """

    state: ModelState
    settings: tuple[Any, ...]
    learning: tuple[bool, ...] | None
    offsets: tuple[int, ...] | None
    imported: Imported
    interface: Interface
    programs: dict[ProgramKey, Runtime] = field(default_factory=dict)
    recent: dict[CallKey, Runtime] = field(default_factory=dict)
    outdated: int = 0

    def used(self, key: tuple[Any, ...]) -> Runtime | None:
        """The program that calls with this at hand have used, if what its derivatives read is as it was."""
        return self._current(self.recent, key)

    def program(self, kind: ProgramKey) -> Runtime | None:
        """The program of this kind, if there is one and what its derivatives read is as it was."""
        return self._current(self.programs, kind)

    def take(self, kind: ProgramKey, key: CallKey) -> Runtime:
        """The program of this kind, which has been checked, for calls with this at hand."""
        if len(self.recent) >= FORMS:
            self.recent = {}
        runtime = self.recent[key] = self.programs[kind]
        if runtime.reads is not None:
            runtime.reads.watch()
        return runtime

    def _current(self, table: Mapping[Any, Runtime], key: Any) -> Runtime | None:
        runtime = table.get(key)
        if runtime is None or runtime.reads is None or runtime.reads.hold():
            return runtime
        self.outdated += 1
        if self.outdated == MANY:
            what = "a custom backward is compiled anew again and again: what it reads from outside changes"
            warnings.warn(f"{what}; hand it over as an argument, or keep it in ctx", stacklevel=9)
        self.programs = {k: r for k, r in self.programs.items() if r is not runtime}
        self.recent = {k: r for k, r in self.recent.items() if r is not runtime}
        return None

    def learning_flags(
        self, tables: Tables, inputs: Mapping[str, Tensor]
    ) -> tuple[tuple[bool, ...], tuple[bool, ...], tuple[bool, ...]]:
        """Which parameters, which inputs and which states require a gradient."""
        origin = self.imported.graph.origin
        return (
            tuple(p.requires_grad for p in tables[0].values()),
            tuple(t.requires_grad for t in inputs.values()),
            tuple(tables[1][origin[name]].requires_grad for name in self.imported.places),
        )

    def wanted(self, key: CallKey) -> frozenset[str]:
        """What a program computes gradients for; all parameters where nothing is asked for."""
        graph, names = self.imported.graph, self.interface.named(self.interface.inputs)
        learnable = frozenset(p for p, type_ in graph.params.items() if type_.differentiable)
        wanted = learnable.intersection(itertools.compress(graph.params, key.params))
        states = itertools.compress(self.imported.places, key.states)
        wanted = wanted.union(itertools.compress(names, key.inputs), states)
        return wanted if self.carries(wanted) else learnable or wanted  # nothing learns: only outputs are asked for

    def carries(self, wanted: frozenset[str]) -> bool:
        """Whether an error can flow from an output to one of `wanted`."""
        graph = replace(self.imported.graph, wanted=wanted)
        return not active(graph).isdisjoint(graph.outputs)


def learning(model: nn.Module, leaves: Sequence[Any]) -> tuple[bool, ...]:
    """Which parameters, and which tensors among the flattened arguments, require a gradient."""
    return tuple(t.requires_grad for t in (*model.parameters(), *leaves) if isinstance(t, Tensor))


def offsets(model: nn.Module) -> tuple[int, ...]:
    """Where in their memory the parameters, the buffers and the tensors in attributes of a model start, in entries."""
    attributes = (v for m in model.modules() for k, v in m.__dict__.items() if k not in SKIPPED)
    held = (leaf for v in attributes for leaf in leaves_of(v)[0] if isinstance(leaf, Tensor))
    tensors = itertools.chain(model.parameters(), model.buffers(), held)
    return tuple(int(t.storage_offset()) for t in tensors if strides(t) is not None)


class ProgramCache:
    """Captures of a model, found by the state that it is in.

    Lists are replaced, never changed, so that threads may read them while one compiles.
    """

    def __init__(self) -> None:
        self.captures: tuple[Captured, ...] = ()
        self.states: tuple[ModelState, ...] = ()
        self.written: frozenset[Place] = frozenset()
        self.places: tuple[Place, ...] = ()
        self.observers: dict[int, Any] = {}
        self._warned = False

    def state(self, model: nn.Module) -> ModelState:
        """The state that `model` is in: one of those that were seen, if it is again as it was then."""
        if self.states and self.states[0].holds():
            return self.states[0]
        for state in self.states[1:]:
            if state.holds():
                self.first(state)
                return state
        now = ModelState(model, self.written, self.observers)
        for state in self.states:
            if state.description == now.description:
                self.replace(state, now)
                break
        return now

    def look(self, model: nn.Module) -> ModelState:
        """The state that `model` is in, for a moment only: nothing that was kept changes."""
        held = next((s for s in self.states if s.holds()), None)
        return held or ModelState(model, self.written, self.observers)

    def learn(self, imported: Imported) -> None:
        """Leave out of the state what the program writes, and what hooks keep and write that run after it."""
        if imported.hooks:
            self.observers = {**self.observers, **imported.hooks.observers}
            self.written |= {Place(*w, registered) for w in imported.hooks.written for registered in (False, True)}
        self.keep([s.place for s in imported.states])

    def keep(self, places: Sequence[Place]) -> None:
        """Leave attributes out of the state that programs write. Captures that took them for fixed are dropped."""
        new = tuple(p for p in dict.fromkeys(places) if p not in self.places)
        if new:
            self.places, self.captures, self.states = (*self.places, *new), (), ()
            self.written = self.written.union(new)

    def replace(self, state: ModelState, now: ModelState) -> None:
        """Let the captures of `state` be those of `now`, a model of the same description with other objects in it."""
        for captured in self.captures:
            if captured.state is state:
                captured.state = now
                captured.recent = {}
        self.states = tuple(s for s in self.states if s is not state)
        self.first(now)

    def first(self, state: ModelState) -> None:
        """Note that the model is in this state now."""
        if not self.states or self.states[0] is not state:
            self.states = (state, *(s for s in self.states if s is not state))

    def add(self, captured: Captured, model: nn.Module) -> None:
        """Keep a capture; the programs of the state that was left longest ago make way where there are too many."""
        self.first(captured.state)
        self.captures = (*self.captures, captured)
        if len(self.states) > STATES:
            self._evict(model)

    def _evict(self, model: nn.Module) -> None:
        if not self._warned:
            self._warned = True
            change = self.states[0].difference(self.states[1])
            warnings.warn(
                f"{type(model).__name__} was compiled for {len(self.states)} states, the last time because {change} "
                "changed; programs of old states are dropped. A number that changes at every call belongs in a buffer",
                stacklevel=2,
            )
        self.states, dropped = self.states[:STATES], self.states[STATES:]
        self.captures = tuple(c for c in self.captures if c.state not in dropped)

    def keep_losses(self, states: Container[Any]) -> None:
        """Forget the programs of losses that were in other states than these."""
        for captured in self.captures:
            captured.programs = {kind: p for kind, p in captured.programs.items() if kind.loss in states}
            captured.recent = {key: p for key, p in captured.recent.items() if key.loss in states}

    def remove(self, captured: Captured) -> None:
        """Forget a capture."""
        self.captures = tuple(c for c in self.captures if c is not captured)
