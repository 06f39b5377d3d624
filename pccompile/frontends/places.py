"""Where a model keeps what its forward writes: attributes and buffers of its modules, compared before and after."""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import Collector, Location

CACHES = frozenset(("_flat_weights", "_flat_weight_refs"))
"""Attributes in which torch's own modules keep their parameters once more."""
SKIPPED = frozenset(nn.Module().__dict__) | CACHES
"""Attributes that are no states: torch's own tables, hooks and the training flag."""
CONTAINERS = (list, dict, tuple, collections.OrderedDict, collections.defaultdict, collections.deque)
PLAIN = (int, float, bool, complex, str, bytes, type(None), torch.dtype, torch.device)


Change = Callable[[Tensor], Tensor]
Memo = dict[int, tuple[Any, Any]]


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()
"""The value of an attribute that is not there."""


@dataclass(frozen=True)
class Place:
    """An attribute of the module at `path`: a plain one, or (`registered`) an entry of its table of buffers."""

    path: str
    attribute: str
    registered: bool = False

    def __str__(self) -> str:
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    def table(self, model: nn.Module) -> dict[str, Any]:
        """The dictionary that holds the attribute."""
        for part in self.path.split(".") if self.path else ():
            model = model._modules[part]  # type: ignore[assignment]
        return model._buffers if self.registered else model.__dict__

    def is_open(self, model: nn.Module) -> bool:
        """Whether the module is there, and no parameter has taken the attribute's name."""
        try:
            owner = model.get_submodule(self.path)
        except AttributeError:
            return False
        return self.attribute not in owner._parameters

    def read(self, model: nn.Module) -> Any:
        """What is there now; MISSING where nothing is, be it because a module on the way is gone."""
        try:
            return self.table(model).get(self.attribute, MISSING)
        except (KeyError, AttributeError):
            return MISSING


def leaves_of(value: Any) -> tuple[list[Any], pytree.TreeSpec | None]:
    """The leaves of a container and its structure, which is None where there is no value."""
    return ([], None) if value is MISSING else pytree.tree_flatten(value)


def copied(value: Any, memo: Memo, tensor: Change) -> Any:
    """`value` with new containers in place of its own, and tensors changed; what is shared in it stays shared.

    memo: what was copied, with the copy, by identity.
    """
    if type(value) is Tensor:
        if id(value) not in memo:
            memo[id(value)] = value, tensor(value)
        return memo[id(value)][1]
    if type(value) not in CONTAINERS and not isinstance(value, tuple):
        return value
    if id(value) not in memo:
        if isinstance(value, tuple):
            parts = [copied(v, memo, tensor) for v in value]
            changed = any(a is not b for a, b in zip(parts, value, strict=True))
            twin: Any = value if not changed else value._make(parts) if hasattr(value, "_make") else tuple(parts)
            memo[id(value)] = value, twin
        elif isinstance(value, dict):
            twin = value.copy()
            memo[id(value)] = value, twin
            twin.update({k: copied(v, memo, tensor) for k, v in value.items()})
        else:
            twin = value.copy()
            memo[id(value)] = value, twin
            for i, v in enumerate(value):
                twin[i] = copied(v, memo, tensor)
    return memo[id(value)][1]


def same(before: Any, after: Any) -> bool:
    """Whether two leaves of an attribute are one, or equal numbers, texts and the like of one type."""
    if before is after:
        return True
    return type(before) is type(after) and isinstance(before, PLAIN) and bool(before == after)


class Snapshot:
    """Every module's attributes and tables as they are now.

    `shield` puts copies in the modules, so that what forward does to them can be seen and undone; `restore` puts all
    back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.memo: Memo = {}
        self.modules = [(path, m, dict(m.__dict__)) for path, m in model.named_modules()]
        self.tables = [(t, dict(t)) for _, m, _ in self.modules for t in (m._buffers, m._parameters, m._modules)]
        self.objects = [(where, o, dict(vars(o))) for where, o in self._objects()]
        self.sets = [(where, s, set(s)) for where, s in self._leaves() if type(s) is set]

    def _leaves(self) -> Iterator[tuple[Place, Any]]:
        for path, _, attributes in self.modules:
            for name, value in attributes.items():
                if name not in SKIPPED:
                    yield from ((Place(path, name), leaf) for leaf in leaves_of(value)[0])

    def _objects(self) -> Iterator[tuple[Place, Any]]:
        """Objects that are attributes and have attributes of their own."""
        seen: set[int] = set()
        for place, leaf in self._leaves():
            foreign = isinstance(leaf, Tensor | nn.Module | type | random.Random) or callable(leaf) or id(leaf) in seen
            if not foreign and hasattr(leaf, "__dict__") and not type(leaf).__module__.startswith("torch."):
                seen.add(id(leaf))
                yield place, leaf

    def shield(self, tensor: Change, buffers: bool) -> None:
        """Give the modules copies of what they hold, but for parameters and modules; of tensors, what `tensor` makes.

        buffers: those too that have no history, and were not made under torch.inference_mode.
        """
        for _, module, attributes in self.modules:
            for name, value in attributes.items():
                if name not in SKIPPED:
                    module.__dict__[name] = copied(value, self.memo, tensor)
            for name, buffer in module._buffers.items():
                if buffer is not None and (buffers or buffer.requires_grad or buffer.is_inference()):
                    module._buffers[name] = copied(buffer, self.memo, tensor)
        for _, thing, attributes in self.objects:
            thing.__dict__.update({k: copied(v, self.memo, tensor) for k, v in attributes.items()})

    def restore(self) -> None:
        """Make the modules what they were."""
        for _, module, attributes in self.modules:
            now = module.__dict__
            _put_back(now, {k: now[k] if k in CACHES and k in now else v for k, v in attributes.items()})
        for table, entries in self.tables:
            _put_back(table, entries)
        for _, thing, attributes in self.objects:
            _put_back(thing.__dict__, attributes)
        for _, contents, members in self.sets:
            contents.clear()
            contents.update(members)

    def changed(self, tables: dict[int, dict[str, Any]]) -> list[Place]:
        """The attributes that are others now; `tables` has what the tables of buffers held, by module.

        Raises CompileError for changes that no program can make.
        """
        problems, found = Collector(), list[Place]()
        for path, module, attributes in self.modules:
            for name in dict.fromkeys((*attributes, *module.__dict__)):
                place = Place(path, name)
                before, after = attributes.get(name, MISSING), module.__dict__.get(name, MISSING)
                if name not in SKIPPED and not self._alike(before, after):
                    found.append(place)
            buffers = tables[id(module)]
            for name in dict.fromkeys((*buffers, *module._buffers)):
                if buffers.get(name, MISSING) is not module._buffers.get(name, MISSING):
                    found.append(Place(path, name, registered=True))
        for where, thing, attributes in self.objects:
            for name in dict.fromkeys((*attributes, *vars(thing))):
                if not self._alike(attributes.get(name, MISSING), vars(thing).get(name, MISSING)):
                    what = f"forward changes {where}.{name}, an attribute of a {type(thing).__name__}"
                    problems.add(what, Location(where.path), "keep it as a tensor, a number, a list or a dict")
        for where, contents, members in self.sets:
            if contents != members:
                problems.add(f"forward changes the set {where}", Location(where.path), "keep it as a list or a dict")
        problems.raise_if_any()
        return found

    def _alike(self, before: Any, after: Any) -> bool:
        if before is after:
            return True
        (old, old_spec), (new, new_spec) = leaves_of(before), leaves_of(after)
        return old_spec == new_spec and all(map(self._untouched, old, new))

    def _untouched(self, before: Any, after: Any) -> bool:
        if id(before) in self.memo and isinstance(before, Tensor):
            copy = self.memo[id(before)][1]
            return copy is after and copy._version == 0
        return same(before, after)

    def contents(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors that were copied, without history, each with its numbers as they are now."""
        tensors = (value.data for value, _ in self.memo.values() if isinstance(value, Tensor))
        return [(t, t.clone()) for t in tensors if t.layout is torch.strided and not t.is_meta]

    def originals(self) -> dict[int, Tensor]:
        """The tensors that were copied, by the identity of their copies."""
        return {id(copy): value for value, copy in self.memo.values() if isinstance(value, Tensor)}


def change_attributes(model: nn.Module, tensor: Change) -> None:
    """Put what `tensor` makes of them in the places of tensors that are plain attributes of modules, or lie in them."""
    Snapshot(model).shield(tensor, buffers=False)


def _put_back(table: dict[str, Any], entries: dict[str, Any]) -> None:
    if table.keys() != entries.keys() or any(table[k] is not v for k, v in entries.items()):
        table.clear()
        table.update(entries)
