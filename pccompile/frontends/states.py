"""States: what a model's forward writes into its modules becomes an input and an output of the captured program.

A first trace finds the attributes that are others after it; the model is then traced again with the tensors in them as
buffers, and with their new values among its results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.counters import Advance, Counter, is_counter
from pccompile.frontends.derivatives import Transforms, below_autograd
from pccompile.frontends.objects import open_objects, refuse_additions
from pccompile.frontends.paths import Reading, Replayed
from pccompile.frontends.places import MISSING, PLAIN, Place, Snapshot, leaves_of
from pccompile.frontends.process import replaced

PREFIX = "pccompile_state_"
"""What the buffers are called that stand for states during a trace; their own names are their places."""


@dataclass(frozen=True)
class Kept:
    """A leaf that is the one at position `index` of what the attribute held before."""

    index: int


@dataclass(frozen=True)
class State:
    """An attribute that a program reads and writes.

    before: the leaves that the program was captured for: names in the graph (Ref) for tensors, Advance() for numbers of
    any value, and else what must be there; `read` says whether the program reads them at all.
    after: the leaves that a call leaves: names in the graph, Kept, Advance, lengths, or what is written as it is.
    in_place: the container itself is changed.
    """

    place: Place
    read: bool
    before: tuple[Any, ...]
    before_spec: pytree.TreeSpec | None
    after: tuple[Any, ...]
    after_spec: pytree.TreeSpec | None
    in_place: bool = False


@dataclass
class WrittenStates:
    """What a trace with states shows. `tensors` and `origins` are those of the buffers that stand for states.

    `originals` are the model's tensors by the identity of those that were in their places. `readings` are what Python
    read on the path of the trace; the tensors come last among the added results.
    In `before` of a state a tensor is still the name of such a buffer, in `after` an index among the added results.
    """

    states: list[State] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    originals: dict[int, Tensor] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()


class StateTrace:
    """One trace of a model. `changed` are the attributes that it has written, `captured` what became of `places`.

    below: forward differentiates, and is traced below autograd. `asked` are the tensors among the arguments of which
    forward asks that they require a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Sequence[Place],
        uncounted: frozenset[Place],
        path: tuple[Reading, ...] = (),
        below: bool = False,
    ) -> None:
        self.model, self.places, self.uncounted, self.path = model, places, uncounted, path
        self.below, self.transforms, self.asked = below, Transforms(), tuple[int, ...]()
        self.replayed = Replayed(path)
        self.snapshot = Snapshot(model)
        self.changed: tuple[Place, ...] = ()
        self.captured = WrittenStates()
        self.values = {p: p.read(model) for p in places}
        self.names: dict[int, str] = {}
        self.counters: dict[Place, Counter] = {}
        self.standing: dict[Place, Any] = {}
        self.owners = {path: m for path, m, _ in self.snapshot.modules}
        self.watching = {(id(self.owners[p.path]), p.attribute): p for p in places}
        self.reads: set[Place] = set()
        self.held: dict[Place, tuple[list[Any], pytree.TreeSpec | None]] = {}
        self.depth = 0
        self.lookup = ExitStack()
        """What is watched while forward runs."""

    @property
    def miscounted(self) -> frozenset[Place]:
        """Numbers that decide what is computed."""
        return frozenset(p for p, c in self.counters.items() if c.used)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within: the model can be traced; afterwards it is what it was."""
        model = self.model
        self.snapshot.shield(lambda t: _tracked(t).data, buffers=False)
        self.captured.originals = self.snapshot.originals()
        held = self.snapshot.contents()
        self.lift()
        before = model.register_forward_pre_hook(self.enter, prepend=True)
        after = model.register_forward_hook(self.leave)
        run, call = fx.Interpreter.run, nn.Module._call_impl

        def interpreted(interpreter: fx.Interpreter, *args: Any, **named: Any) -> Any:
            """A graph module, which torch.export runs without its hooks."""
            if interpreter.module is not model:
                return run(interpreter, *args, **named)
            self.enter(model, args)
            output = run(interpreter, *args, **named)
            more = self.leave(model, args, output)
            return output if more is None else more

        def called(module: nn.Module, *args: Any, **named: Any) -> Any:
            """A call of a module; where forward fails, what is watched is left before what torch has put around it."""
            if module is not model or self.depth:
                return call(module, *args, **named)  # type: ignore[no-untyped-call]
            given = pytree.tree_leaves((args, named))
            leaves = [leaf for leaf in given if isinstance(leaf, Tensor)]
            still = [i for i, leaf in enumerate(leaves) if not leaf.requires_grad]
            try:
                output = call(module, *args, **named)  # type: ignore[no-untyped-call]
            finally:
                self.lookup.close()
                self.asked = tuple(i for i in still if leaves[i].requires_grad)
            open_objects(output)
            refuse_additions(given, pytree.tree_leaves((args, named)))
            return output

        try:
            with replaced(fx.Interpreter, run=interpreted), replaced(nn.Module, _call_impl=called), self.lookup:
                yield
        finally:
            before.remove()
            after.remove()
            self.snapshot.restore()
            for tensor, contents in held:  # torch traces what is written into a constant, and writes it too
                if not torch.equal(tensor, contents):
                    tensor.copy_(contents)

    def lift(self) -> None:
        """Register a buffer for each tensor in a plain attribute that is a state."""
        taken = {name for m in self.model.modules() for name in (*m.__dict__, *m._buffers)}
        paths = {*(k for k, _ in self.model.named_parameters()), *(k for k, _ in self.model.named_buffers())}
        for place, value in self.values.items():
            if place.registered:
                continue
            for path, leaf in pytree.tree_flatten_with_path(value)[0] if value is not MISSING else ():
                if isinstance(leaf, Tensor) and id(leaf) not in self.names:
                    name = f"{PREFIX}{len(self.names)}"
                    while name in taken:
                        name += "_"
                    taken.add(name)
                    self.names[id(leaf)] = name
                    self.model._buffers[name] = _tracked(leaf).detach()
                    origin = f"{place}{pytree.keystr(path)}"
                    while origin in paths:
                        origin += "'"
                    paths.add(origin)
                    self.captured.tensors[name], self.captured.origins[name] = leaf, origin

    def enter(self, model: nn.Module, args: Any) -> None:
        """Before forward: what stands in for states takes their places."""
        self.depth += 1
        if self.depth > 1:
            return
        hooks = nn.modules.module._global_buffer_registration_hooks
        for key, hook in list(hooks.items()):  # torch would copy what is assigned to a buffer into it
            if getattr(hook, "__qualname__", "").startswith("register_buffer_assignment_hook"):
                del hooks[key]
        self.tables = {id(m): dict(m._buffers) for _, m, _ in self.snapshot.modules}
        self.parameters = {id(m): dict(m._parameters) for _, m, _ in self.snapshot.modules}
        memo: dict[int, Any] = {}
        for place, value in self.values.items():
            table = place.table(model)
            if place.registered or value is MISSING:
                self.standing[place] = table.get(place.attribute, MISSING)
            else:
                self.standing[place] = self.stand_in(place, value, memo)
                del table[place.attribute]
            self.held[place] = leaves_of(self.standing[place])
        if self.below:
            self.lookup.enter_context(below_autograd())
        if self.places:
            self.lookup.enter_context(replaced(nn.Module, __getattr__=self.watched(nn.Module.__getattr__)))
        if self.path:
            self.replayed = self.lookup.enter_context(Replayed(self.path))
            self.lookup.enter_context(replaced(FakeTensor, tolist=Tensor.tolist))  # its own reads entry by entry

    def stand_in(self, place: Place, value: Any, memo: dict[int, Any]) -> Any:
        """`value` with traced tensors in place of its own; containers that are shared stay shared."""
        if type(value) in (int, float) and place not in self.uncounted:
            self.counters[place] = Counter(value)
            return self.counters[place]
        if id(value) not in memo:
            leaves, spec = pytree.tree_flatten(value)
            leaves = [self.traced(leaf) for leaf in leaves]
            memo[id(value)] = pytree.tree_unflatten(leaves, spec)
        return memo[id(value)]

    def traced(self, leaf: Any) -> Any:
        """The tensor that stands for `leaf` in the trace."""
        return self.model._buffers[self.names[id(leaf)]] if id(leaf) in self.names else leaf

    def watched(self, lookup: Callable[[nn.Module, str], Any]) -> Callable[[nn.Module, str], Any]:
        """`nn.Module.__getattr__`, which serves states that have not been written yet, and notes which are read."""

        def look(module: nn.Module, name: str) -> Any:
            place = self.watching.get((id(module), name)) if self.depth else None
            if place is not None:
                value, table = self.standing[place], place.table(self.model)
                current = table.get(name, MISSING)
                if current is MISSING or current is value:
                    self.reads.add(place)
                if current is MISSING and value is not MISSING:
                    table[name] = value
                    return value
            return lookup(module, name)

        return look

    def leave(self, model: nn.Module, args: Any, output: Any) -> Any:
        """After forward: the new values of the states join the results."""
        self.depth -= 1
        if self.depth:
            return None
        self.lookup.close()
        for place, value in self.standing.items():
            if value is not MISSING and not place.registered:
                place.table(model).setdefault(place.attribute, value)
        for path, module, _ in self.snapshot.modules:
            for name, parameter in self.parameters[id(module)].items():
                if module._parameters.get(name) is not parameter:
                    where = f"{path}.{name}" if path else name
                    raise CompileError(
                        f"forward replaces the parameter {where}", Location(path), "keep what changes as a buffer"
                    )
        for leaf in pytree.tree_leaves(output):
            if is_counter(leaf):
                leaf.use()
        found = self.snapshot.changed(self.tables)
        added: list[Any] = []
        for place in self.places:
            self.captured.states.append(self.state(place, added))
        for _, module, _ in self.snapshot.modules:
            module._buffers.clear()
            module._buffers.update(self.tables[id(module)])
        self.changed = tuple(p for p in found if p not in self.values)
        self.replayed.finish()
        self.captured.readings = self.path
        added += self.replayed.tensors
        return (output, tuple(added)) if self.places or self.path else None

    def state(self, place: Place, added: list[Any]) -> State:
        """What became of one attribute; new tensors and lengths go to `added`."""
        before, after = self.standing[place], place.table(self.model).get(place.attribute, MISSING)
        if place in self.counters and is_counter(after):
            self.counters[place].used |= after.root is not self.counters[place]
            return State(place, True, (Advance(),), leaves_of(0)[1], (after.advance,), leaves_of(0)[1])
        if place in self.counters:
            self.counters[place].used = True
            after = self.counters[place].value
        old, old_spec = self.held[place]
        new, new_spec = leaves_of(after)
        names = {id(self.model._buffers[n]): n for n in self.names.values()}
        ours = f"{place.path}.{place.attribute}" if place.path else place.attribute
        leaves: list[Any] = []
        for leaf in old:
            leaves.append(_Name(names.get(id(leaf), ours)) if isinstance(leaf, Tensor) else leaf)
        results: list[Any] = []
        for leaf in (o.use() if is_counter(o) else o for o in new):
            position = next((i for i, o in enumerate(old) if o is leaf and isinstance(leaf, Tensor)), None)
            if position is not None:
                results.append(Kept(position))
            elif isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool):
                results.append(_Index(len(added)))
                added.append(leaf)
            elif isinstance(leaf, PLAIN) or any(leaf is o for o in old):
                results.append(leaf)
            else:
                what = f"forward writes {place}, which becomes a {type(leaf).__name__}"
                raise CompileError(what, Location(place.path), "keep it as a tensor, a number, a list or a dict")
        in_place = before is after and isinstance(before, list | dict)
        return State(place, place in self.reads, tuple(leaves), old_spec, tuple(results), new_spec, in_place)


def _tracked(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy that autograd knows where it was made under torch.inference_mode."""
    return tensor.clone() if tensor.is_inference() else tensor


class _Name(str):
    """The name of a buffer that a state has during a trace."""


class _Index(int):
    """The position of a state's new value among the results that a trace adds."""


def resolved(captured: WrittenStates, names: Mapping[str, Any], added: Sequence[Any]) -> tuple[State, ...]:
    """The states of a captured program, once its graph is there.

    names: what the graph calls the model's buffers; it has those that forward takes out of a module's table itself,
    and so unseen. added: what it calls the results that the trace has added.
    """

    def leaf(value: Any) -> Any:
        return names[value] if isinstance(value, _Name) else added[value] if isinstance(value, _Index) else value

    def state(s: State) -> State:
        read = s.read or (s.place.registered and not names.keys().isdisjoint(s.before))
        return replace(s, read=read, before=tuple(map(leaf, s.before)) if read else (), after=tuple(map(leaf, s.after)))

    return tuple(map(state, captured.states))


def in_place(states: Iterable[State], buffers: Mapping[str, Any]) -> Iterator[State]:
    """States for buffers that are changed in place, and stay the same tensor; `buffers` are their names, by path."""
    known, spec = {str(s.place) for s in states}, pytree.tree_structure(0)
    for path, name in buffers.items():
        if path not in known:
            owner, _, attribute = path.rpartition(".")
            yield State(Place(owner, attribute, registered=True), True, (name,), spec, (Kept(0),), spec)


def unread(captured: WrittenStates) -> set[str]:
    """The buffers of a trace that stand for what is written and not seen to be read."""
    names = {flag: {n for s in captured.states if s.read is flag for n in s.before} for flag in (False, True)}
    return {n for n in names[False] - names[True] if isinstance(n, _Name)}


def keys(state: State) -> list[str]:
    """What the leaves that a call leaves in `state` are called: the attribute, and the way to the leaf within it."""
    if state.after_spec is None:
        return []
    numbered = pytree.tree_unflatten(range(len(state.after)), state.after_spec)
    return [f"{state.place}{pytree.keystr(path)}" for path, _ in pytree.tree_flatten_with_path(numbered)[0]]
