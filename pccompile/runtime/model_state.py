"""What a model is when it is captured, noticed when it changes, and what it holds now.

A captured program rests on the model's structure, on its modules' attributes, on hooks, and on what its code reads
from outside. All of that is compared with copies at each call, in C; the tensors that a program reads stand in the
model and are read there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pccompile.diagnostics import CompileError
from pccompile.frontends.code_reads import CodeReads, functions_in
from pccompile.frontends.imported import Imported
from pccompile.frontends.places import Place
from pccompile.frontends.snapshots import CONSTANT, Describer, Description, Snapshots, is_foreign, is_own_code
from pccompile.frontends.tensor_forms import strides
from pccompile.runtime.states import state_tensors

FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
HOOK_TABLES = (*FORWARD_HOOKS, "_backward_pre_hooks", "_backward_hooks")
HOOK_FLAGS = {
    "_forward_pre_hooks_with_kwargs": "_forward_pre_hooks",
    "_forward_hooks_with_kwargs": "_forward_hooks",
    "_forward_hooks_always_called": "_forward_hooks",
}
GLOBAL_TABLES = tuple(f"_global{t}" for t in HOOK_TABLES)
Tables = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and buffers by path."""
TENSOR_TABLES = ("_parameters", "_buffers")
OWN = {*TENSOR_TABLES, *HOOK_TABLES, *HOOK_FLAGS, "_modules", "_non_persistent_buffers_set"}
OWN |= {"_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"}
OWN |= {"_is_full_backward_hook"}
"""Entries of a module's `__dict__` that are tables of torch's own."""


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, one that stands in several places as often."""
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        yield path, module
        for name, child in reversed(module._modules.items()):
            if child is not None:
                stack.append((f"{path}.{name}" if path else name, child))


class ModelState:
    """A model as it was at one moment: whether it is still so, and whether another moment's program fits it.

    `tensors` are the model's tensors by path: parameters, buffers, and tensors that are plain attributes.
    `written` are attributes and buffers that programs or hooks write: they are no part of it, each in its own table.
    `observers` are hooks whose own variables are none either.
    """

    def __init__(
        self,
        model: nn.Module,
        written: frozenset[Place] = frozenset(),
        observers: Mapping[int, Any] | None = None,
    ) -> None:
        self.snapshots = Snapshots()
        self.forms = self.snapshots.forms
        self.tensors: dict[str, Tensor] = {}
        self.device: torch.device | None = None
        self._observers = observers or {}
        self._written: dict[tuple[str, str], set[str]] = {}
        for place in written:
            self._written.setdefault((place.path, "_buffers" if place.registered else "__dict__"), set()).add(
                place.attribute
            )
        self._tables: dict[int, tuple[object, Tables]] = {}
        self._describe = Describer(self.snapshots)
        self._ties: dict[int, int] = {}
        self._classes: dict[type, None] = {}
        paths = list(modules(model))
        self._modules = [m for _, m in paths]
        self._types = list(map(type, self._modules))
        for i, module in enumerate(self._modules):
            self._describe.known.setdefault(id(module), ("module", i))
        tensors = {path: self._tensors(path, module) for path, module in paths}
        own = {path: self._module(path, module) for path, module in paths}
        self.description: Description = (
            {path: (tensors[path], *own[path]) for path in own},
            tuple(self._hooks(torch_module.__dict__[t]) for t in GLOBAL_TABLES),
            CodeReads(self._describe).follow(self._classes),
        )

    @property
    def functions(self) -> tuple[type[torch.autograd.Function], ...]:
        """The user's own autograd Functions that the model's code names."""
        return tuple(k for k in self._describe.classes if issubclass(k, torch.autograd.Function) and is_own_code(k))

    def holds(self) -> bool:
        """Whether the model is what it was, down to which objects it holds."""
        return list(map(type, self._modules)) == self._types and self.snapshots.hold()

    def tables(self, imported: Imported) -> Tables:
        """The tensors of a program by path, as the model has them now.

        Raises CompileError for one that is gone; what the program holds by itself is no tensor of the model.
        """
        if id(imported.tensors) not in self._tables:
            graph = imported.graph
            params, buffers = (
                {graph.origin[name]: self._tensor_of(imported, name) for name in names if name not in imported.places}
                for names in (graph.params, graph.buffers)
            )
            self._tables[id(imported.tensors)] = imported.tensors, (params, buffers)
        tables = self._tables[id(imported.tensors)][1]
        if imported.places:
            return tables[0], tables[1] | state_tensors(imported, self._modules[0])
        return tables

    def _tensor_of(self, imported: Imported, name: str) -> Tensor:
        path = imported.graph.origin[name]
        tensor = imported.tensors[name] if name in imported.constants else self.tensors.get(path)
        if tensor is None:
            raise CompileError(f"{path} is no longer in the model", hint="call the model as it is now")
        return tensor

    def difference(self, other: ModelState) -> str:
        """What differs from another state of the model, in the model's names."""
        mine, theirs = self.description[0], other.description[0]
        if mine.keys() != theirs.keys():
            return f"the module {min(mine.keys() ^ theirs.keys(), key=len)}"
        for path in mine:
            if mine[path] != theirs[path]:
                names = [n for (n, *_), (m, *_) in zip(mine[path][4], theirs[path][4], strict=False) if n == m]
                values = [dict(side[path][4]) for side in (mine, theirs)]
                changed = [n for n in names if values[0][n] != values[1][n]]
                return ".".join(filter(None, (path, *changed[:1]))) or "the model"
        return "a hook or a value that its code reads from outside"

    def _tensors(self, path: str, module: nn.Module) -> Description:
        """Where a module's tensors stand and what each is like: another one of the same form is read in its place."""
        entries: list[Any] = []
        for kind in (*TENSOR_TABLES, "__dict__"):
            table = module.__dict__ if kind == "__dict__" else module.__dict__[kind]
            for name, value in table.items():
                if name in self._written.get((path, kind), ()):
                    continue
                if isinstance(value, Tensor):
                    entries.append((kind, name, self._tensor(f"{path}.{name}" if path else name, value, kind)))
                elif kind != "__dict__":
                    entries.append((kind, name, value is None))
            if kind != "__dict__":
                self._compare(path, kind, table)
        return tuple(sorted(entries, key=lambda e: e[:2]))

    def _tensor(self, path: str, tensor: Tensor, kind: str) -> Description:
        self.tensors[path] = tensor
        if self.device is None:
            self.device = tensor.device
        index = self._ties.setdefault(id(tensor), len(self._ties))
        plain = Tensor if type(tensor) is nn.Parameter else type(tensor)
        form: Description = ("tensor", index, plain, tensor.dtype, tensor.shape, tensor.layout, strides(tensor))
        self._describe.known.setdefault(id(tensor), form)
        self.snapshots.form(tensor, learning=kind != "_parameters")
        return form if kind == "_parameters" else (*form, tensor.requires_grad)

    def _compare(self, path: str, kind: str, table: dict[str, Any]) -> None:
        """Watch a table of a module, but for what programs write."""
        names = self._written.get((path, kind))
        if names is None:
            self.snapshots.table(table)
        else:
            rest = _Rest(table, names)
            self.snapshots.container(rest, rest.now())

    def _module(self, path: str, module: nn.Module) -> Description:
        """A module's kind, its submodules, attributes and hooks."""
        kind, own = type(module), module.__dict__
        if kind not in self._classes:
            self._classes[kind] = None
            self.snapshots.attributes(kind, "forward", "__call__")
        self._compare(path, "__dict__", own)
        written = self._written.get((path, "__dict__"), ())
        self.snapshots.table(module._modules)
        for flag, table in HOOK_FLAGS.items():
            if own[table]:  # without hooks, nothing reads their flags
                self.snapshots.table(own[flag])
        children = tuple((n, c if c is None else self._describe.known[id(c)]) for n, c in module._modules.items())
        attributes = tuple(
            (name, self._attribute(kind, value))
            for name, value in sorted(own.items())
            if name not in OWN and name not in written and not isinstance(value, Tensor)
        )
        hooks = tuple(self._hooks(own[t]) for t in HOOK_TABLES)
        flags = tuple(tuple(k in own[f] for k in own[t]) for f, t in HOOK_FLAGS.items())
        return kind, (id(kind.forward), id(kind.__call__)), children, attributes, hooks, flags

    def _attribute(self, kind: type, value: Any) -> Description:
        """An attribute; in what is made by compilers (fx, files), only what is plain may be changed by a user."""
        if kind.__module__.startswith(("torch.fx", "pccompile")) and not isinstance(value, CONSTANT):
            return "object", id(value)
        return self._describe(value)

    def _hooks(self, table: Any) -> Description:
        self.snapshots.table(table)
        followed = [h for h in table.values() if id(h) not in self._observers and not is_foreign(h)]
        functions = (f for h in followed for f in functions_in(h) if not is_foreign(f))
        self._describe.functions.update(dict.fromkeys(functions))
        return tuple(("hook", id(h)) if id(h) in self._observers else self._describe(h) for h in table.values())


class _Rest:
    """A table without the entries that programs write."""

    def __init__(self, table: dict[str, Any], names: set[str]) -> None:
        self.table, self.names = table, names

    def now(self) -> dict[str, Any]:
        """The other entries."""
        return {k: v for k, v in self.table.items() if k not in self.names}

    def __getitem__(self, name: str) -> Any:
        return self.table[name]

    def __eq__(self, other: object) -> bool:
        return self.now() == other

    __hash__ = None  # type: ignore[assignment]
