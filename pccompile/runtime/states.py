"""The states of a model at a call: read for the program, compared with what it was captured for, and moved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.counters import Advance
from pccompile.frontends.imported import Imported
from pccompile.frontends.model_tensors import tensor_at
from pccompile.frontends.numbers import Read
from pccompile.frontends.places import MISSING, leaves_of, same
from pccompile.frontends.states import Kept, State
from pccompile.ir import Ref, TensorType
from pccompile.runtime.shared_memory import refuse_overlap
from pccompile.runtime.unread_states import unseen


def state_tensors(imported: Imported, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a program's states by their paths, as the model has them now."""
    return {
        imported.graph.origin[name]: leaves_of(place.read(model))[0][index]
        for name, (place, index) in imported.places.items()
    }


def fits(imported: Imported, model: nn.Module) -> bool:
    """Whether the states that a program reads are of the forms that it was captured for."""
    tied = {leaf for s in imported.states for leaf in s.before if isinstance(leaf, Ref) and leaf not in imported.places}
    seen: dict[str, Any] = {name: tensor_at(model, imported.graph.origin[name]) for name in tied}
    return all(not s.read or _fits(s, imported, model, seen) for s in imported.states)


def _fits(state: State, imported: Imported, model: nn.Module, seen: dict[str, Any]) -> bool:
    leaves, spec = leaves_of(state.place.read(model))
    if spec != state.before_spec:
        return False
    for leaf, expected in zip(leaves, state.before, strict=True):
        if isinstance(expected, Ref):
            type_ = imported.graph.leaves[expected]
            if not isinstance(leaf, Tensor) or TensorType(tuple(leaf.shape), leaf.dtype) != type_:
                return False
            if seen.setdefault(expected, leaf) is not leaf:
                return False
        elif isinstance(expected, Advance):
            if type(leaf) not in (int, float):
                return False
        elif not same(expected, leaf):
            return False
    return True


@dataclass(frozen=True)
class Writes:
    """What a program writes into its model and its arguments.

    `positions` are those of values among the program's outputs, `carried` those of the values that buffers take in
    place with a gradient. `changed` are the floating-point buffers that are changed in place. `apart` are values of
    states that no error comes back to, though they depend on what learns.
    """

    imported: Imported
    positions: Mapping[str, int]
    carried: Mapping[str, int]
    changed: tuple[str, ...]
    apart: frozenset[str] = frozenset()

    @classmethod
    def of(cls, imported: Imported, apart: frozenset[str] = frozenset()) -> Writes:
        """The writes of a program."""
        graph = imported.graph
        positions = {name: i for i, name in enumerate(graph.outputs)}
        carried = {b: positions[v] for b, v in graph.updates.items() if v in positions}
        changed = tuple(b for b in graph.updates if graph.buffers[b].differentiable)
        return cls(imported, positions, carried, changed, apart)

    def __bool__(self) -> bool:
        return bool(self.imported.states or self.imported.writes or self.carried or self.changed)

    @property
    def results(self) -> int:
        """How many of the outputs are the model's results."""
        return len(self.imported.graph.outputs) - self.imported.graph.further

    def refuse_in_graphs(self) -> None:
        """Raise CompileError for what a graph that holds the call would not know to be written."""
        written = [str(s.place) for s in self.imported.states] + list(self.imported.writes) + list(self.carried)
        if written:
            what = f"a call within a graph writes {written[0]}, which the graph does not know"
            raise CompileError(what, hint="leave out fullgraph=True, or run the model outside torch.compile")

    def own(self, buffers: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`inputs`, those copied that a call changes in place: what reads them later reads what they were."""
        for name in self.imported.writes:
            refuse_overlap(name, inputs)
        written = {_memory(buffers[self.imported.graph.origin[b]]) for b in self.changed}
        return {
            k: t.clone() if k in self.imported.writes or (written and t.numel() and _memory(t) in written) else t
            for k, t in inputs.items()
        }

    def apply(
        self, model: nn.Module, buffers: Mapping[str, Tensor], inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Write what a call has computed; its outputs, in which what was written in place is the tensor itself."""
        results, graph = list(outputs), self.imported.graph
        for name, value in self.imported.writes.items():
            inputs[name].copy_(outputs[self.positions[value]])
            results[self.positions[value]] = inputs[name]
        for name, position in self.carried.items():
            buffer = buffers[graph.origin[name]]
            if outputs[position].requires_grad:
                buffer.copy_(outputs[position])
            results[position] = buffer
        sizes = self._sizes(inputs)
        values = [(s, self._values(s, model, outputs, sizes)) for s in self.imported.states]
        for state, leaves in values:
            _write(state, model, leaves)
        return tuple(results)

    def _values(self, state: State, model: nn.Module, outputs: Sequence[Tensor], sizes: Mapping[Any, int]) -> list[Any]:
        """The leaves that `state` has after the call."""
        before = leaves_of(state.place.read(model))[0]
        values: list[Any] = []
        for leaf in state.after:
            if isinstance(leaf, Ref):
                value = outputs[self.positions[leaf]]
                value = unseen(value, str(state.place)) if leaf in self.apart else value
                values.append(value.item() if isinstance(leaf, Read) else value)
            elif isinstance(leaf, Kept):
                values.append(before[leaf.index])
            elif isinstance(leaf, Advance):
                values.append(leaf(before[0]))
            else:
                values.append(int(leaf.xreplace(sizes)) if isinstance(leaf, sympy.Expr) else leaf)
        return values

    def _sizes(self, inputs: Mapping[str, Tensor]) -> dict[Any, int]:
        sources = self.imported.graph.dims.items()
        return {
            sympy.Symbol(dim, integer=True, positive=True): inputs[s.tensor].shape[s.axis]
            for dim, s in sources
            if s.tensor in inputs
        }


def _write(state: State, model: nn.Module, leaves: list[Any]) -> None:
    """Let an attribute hold `leaves`; a list or a dict that forward changes stays the same object."""
    table, name = state.place.table(model), state.place.attribute
    if state.after_spec is None:
        table.pop(name, None)
        return
    value = pytree.tree_unflatten(leaves, state.after_spec)
    before = table.get(name, MISSING)
    if state.in_place and isinstance(before, list):
        before[:] = value
    elif state.in_place and isinstance(before, dict):
        before.clear()
        before.update(value)
    else:
        table[name] = value


def _memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def refuse_moving(imported: Imported, carrying: Sequence[str]) -> None:
    """Raise CompileError where states carry a gradient from call to call that inference by a loss would not see.

    carrying: the outputs that carry an error.
    """
    values = dict(imported.graph.states)
    values |= {imported.graph.origin[b]: v for b, v in imported.graph.updates.items()}
    for path, value in values.items():
        if value in carrying:
            what = f"the state {path} hands a gradient on to later calls, which inference with a loss does not take in"
            raise CompileError(what, Location(path), 'detach it in forward, or use algorithm="exact"')
