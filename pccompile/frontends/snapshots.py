"""Shallow copies of what a captured program rests on, and descriptions by which two captures are compared."""

from __future__ import annotations

import functools
import itertools
import operator
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pccompile.frontends.tensor_forms import TensorForms

try:
    from torch._C._dynamo.guards import dict_version
except ImportError:  # no public name: a torch without it has dictionaries compared entry by entry
    dict_version = None  # type: ignore[assignment]

FOREIGN = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "sympy", "pccompile", "pccompile_generated"}
"""Packages whose code and objects are taken as they are; everything else is followed."""
FOLLOWED = (types.SimpleNamespace, functools.partial)
"""Kinds of objects of such packages that only hold what a user put there."""
CONSTANT: tuple[type, ...] = (
    *(str, bytes, int, float, complex, type(None), type(Ellipsis), slice, range, np.generic, Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)

Description = tuple[Any, ...]
"""What a value is, in values that can be compared: equal descriptions give equal programs."""


def is_foreign(value: Any) -> bool:
    """Whether a class or function belongs to torch, to Python itself or to another package that is taken as it is."""
    return (getattr(value, "__module__", None) or "builtins").partition(".")[0] in FOREIGN


def is_own_code(value: Any) -> bool:
    """Whether a class or function is the user's own, and not that of an installed package, which does not change."""
    return not is_foreign(value) and not _is_installed((getattr(value, "__module__", None) or "").partition(".")[0])


@functools.lru_cache(4096)
def _is_installed(package: str) -> bool:
    module = sys.modules.get(package)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return any(part in place for place in places for part in ("site-packages", "dist-packages"))


class _Strictly:
    """Numbers whose types must stay, since True, 1 and 1.0 are equal and do not compute the same; and tensors of one
    element, which must stay the same ones, since a comparison of their values would pass.
    """

    def __init__(self) -> None:
        self._getters: list[Callable[[Any], tuple[Any, ...]]] = []
        self._owners: list[Any] = []
        self._types: list[type] = []
        self._single: list[tuple[Any, Any, Any]] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare."""
        return not (self._getters or self._single)

    def entries(self, owner: Any, values: Mapping[Any, Any]) -> None:
        """Compare these entries of `owner`."""
        numbers = [k for k, v in values.items() if isinstance(v, int | float | complex) and k != "training"]
        self.typed(owner, operator.itemgetter, numbers, [values[k] for k in numbers])
        self._single += [(owner, k, v) for k, v in values.items() if isinstance(v, Tensor) and v.numel() == 1]

    def typed(self, owner: Any, getter: Callable[..., Any], names: Sequence[Any], values: Sequence[Any]) -> None:
        """Compare the types of what stands under these names; a getter of one name yields no tuple, so it has two."""
        if names:
            self._getters.append(getter(*names, *names[: len(names) == 1]))
            self._owners.append(owner)
            self._types += map(type, (*values, *values[: len(names) == 1]))

    def hold(self) -> bool:
        """Whether all are as they were."""
        values = itertools.chain.from_iterable(map(operator.call, self._getters, self._owners))
        same = list(map(type, values)) == self._types
        return same and (not self._single or all(owner[key] is value for owner, key, value in self._single))


class Snapshots:
    """Live containers beside shallow copies of them, compared in C: identity first, then equality.

    Dictionaries come first: where nobody has written to any of them since they were compared last, which their versions
    say, they are not compared again.
    """

    def __init__(self) -> None:
        self.live: list[Any] = []
        self.copies: list[Any] = []
        self._empty: list[Any] = []
        self._getters: list[Callable[[Any], Any]] = []
        self._owners: list[Any] = []
        self._values: list[Any] = []
        self._dicts: tuple[list[Any], list[Any], _Strictly] = [], [], _Strictly()
        self._others: tuple[list[Any], list[Any], _Strictly] = [], [], _Strictly()
        self._versions: list[int] | None = None
        self.forms = TensorForms()

    def container(self, live: Any, copy: Any) -> None:
        """Compare `live` with `copy`, a dictionary, list or set."""
        self.live.append(live)
        self.copies.append(copy)
        lives, copies, strictly = self._dicts if type(live) is dict else self._others
        lives.append(live)
        copies.append(copy)
        self._versions = None
        keys = copy if isinstance(copy, dict) else range(len(copy)) if isinstance(copy, list) else ()
        strictly.entries(live, {k: copy[k] for k in keys})

    def table(self, live: Any) -> None:
        """Compare `live`, a dictionary of tensors, modules or hooks, which is empty as a rule."""
        if live:
            self.container(live, dict(live))
        else:
            self._empty.append(live)

    def entries(self, owner: Any, names: Sequence[Any]) -> None:
        """Compare the entries `names` of `owner`, a large dictionary such as the globals of a file."""
        if names:
            self._getters.append(operator.itemgetter(*names))
            self._owners.append(owner)
            self._values.append(self._getters[-1](owner))
            self._others[2].entries(owner, {k: owner[k] for k in names})

    def attributes(self, owner: Any, *names: str) -> None:
        """Compare attributes of `owner`."""
        self._getters.append(operator.attrgetter(*names))
        self._owners.append(owner)
        self._values.append(self._getters[-1](owner))
        numbers = [n for n in names if isinstance(getattr(owner, n), int | float | complex | Tensor)]
        self._others[2].typed(owner, operator.attrgetter, numbers, [getattr(owner, n) for n in numbers])

    def form(self, tensor: Tensor, learning: bool) -> None:
        """Compare the form of a tensor, and whether it takes a gradient where `learning` says that this matters."""
        self.forms.add(tensor, learning)

    def hold(self) -> bool:
        """Whether everything is as it was."""
        try:
            dicts, copies, strictly = self._dicts
            versions = None if dict_version is None else list(map(dict_version, dicts))
            if versions is None or versions != self._versions:
                if dicts != copies or not strictly.hold():
                    return False
                self._versions = versions
            others, copies, strictly = self._others
            like = self.forms.surroundings
            return (
                not any(self._empty)
                and list(map(operator.call, self._getters, self._owners)) == self._values
                and (not others or others == copies)
                and (strictly.empty or strictly.hold())
                and ((like is not None and like(*self.forms.plain)) or self.forms.hold())
            )
        except Exception:  # a comparison of tensors or arrays, a name that is gone: something was replaced
            return False

    def changes(self) -> Iterator[tuple[Any, str]]:
        """What is not as it was: the object or table that it stands in, and the name that it has there."""
        for live, copy in zip(self.live, self.copies, strict=True):
            if isinstance(copy, dict):
                entries: dict[Any, Any] = live.now() if isinstance(live, NamedEntries) else dict(live)
                keys = dict.fromkeys((*copy, *entries))
                yield from ((live, str(k)) for k in keys if not _unchanged(entries.get(k, live), copy.get(k, live)))
            elif not _same(live, copy):
                yield live, ""
        for getter, owner, value in zip(self._getters, self._owners, self._values, strict=True):
            names = _names_of(getter)
            values = (getter(owner), value) if len(names) > 1 else ((getter(owner),), (value,))
            yield from ((owner, n) for n, a, b in zip(names, *values, strict=True) if not _unchanged(a, b))

    def restore(self) -> bool:
        """Put back what stood in dictionaries, lists, sets and closure cells; return whether anything had changed."""
        changed = False
        for live, copy in zip(self.live, self.copies, strict=True):
            if _same(live, copy):
                continue
            changed = True
            if isinstance(live, dict | set):
                live.clear()
                live.update(copy)
            elif isinstance(live, list | deque):
                live.clear()
                live.extend(copy)
        for getter, owner, value in zip(self._getters, self._owners, self._values, strict=True):
            if not _same(getter(owner), value):
                changed = True
                _put_back(owner, getter, value)
        return changed


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except Exception:  # tensors or arrays: something was replaced
        return False


def _unchanged(a: Any, b: Any) -> bool:
    """Whether a value is what it was: of a tensor, whether it is the same one."""
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and _same(a, b))


def _names_of(getter: Any) -> tuple[Any, ...]:
    """What a getter reads."""
    names: tuple[Any, ...] = getter.__reduce__()[1]
    return names


def _put_back(owner: Any, getter: Any, value: Any) -> None:
    """Set what `getter` reads from `owner`, a closure cell, an object or the globals of a file."""
    names = _names_of(getter)
    for name, part in zip(names, value if len(names) > 1 else (value,), strict=True):
        if isinstance(owner, dict):
            owner[name] = part
        elif getattr(owner, name) is not part:
            setattr(owner, name, part)


class Describer:
    """Descriptions of values, with snapshots of all mutable containers in them.

    `known` gives the tensors that a program reads where they stand in the model their own description. by_name: of an
    object of the user's own class nothing is described; it stands in `objects`, for whoever knows the names that are
    read.
    """

    def __init__(self, snapshots: Snapshots, by_name: bool = False) -> None:
        self.snapshots, self.by_name = snapshots, by_name
        self.objects: dict[int, tuple[Any, dict[str, None]]] = {}
        self.known: dict[int, Description] = {}
        self.classes: dict[type, None] = {}
        self.named_classes: set[type] = set()
        self.functions: dict[types.FunctionType, None] = {}
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []

    def __call__(self, value: Any) -> Description:
        """What `value` is; an object that is not followed is itself."""
        if isinstance(value, CONSTANT):
            return type(value), repr(value) if isinstance(value, float | complex) else value
        if id(value) in self.known:
            return self.known[id(value)]
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return self._followed(value)

    @property
    def met(self) -> tuple[Any, ...]:
        """All that was described but constants."""
        return tuple(self._kept)

    def _followed(self, value: Any) -> Description:
        match value:
            case dict() | types.MappingProxyType():
                entries = dict(dict.items(value) if isinstance(value, dict) else value)
                self.snapshots.container(value, entries)
                return type(value), *((self._key(k), self(v)) for k, v in entries.items())
            case list() | deque():
                self.snapshots.container(value, value.copy())
                return type(value), *map(self, list(value))
            case tuple():
                return type(value), *map(self, value)
            case set() | frozenset():
                self.snapshots.container(value, value.copy())
                return type(value), frozenset(map(self._key, value))
            case np.ndarray():
                self.snapshots.container(_Array(value), value.copy())
                return "array", value.dtype.str, value.shape, value.tobytes() if value.dtype != object else id(value)
            case types.FunctionType():
                if is_own_code(value):
                    self.functions[value] = None
                return "function", id(value)
            case types.MethodType():
                return "method", self(value.__func__), self(value.__self__)
            case type():
                if is_own_code(value):
                    self.classes[value] = None
                    self.named_classes.add(value)
                return "class", id(value)
        return self._object(value)

    def _key(self, key: Any) -> Any:
        return (type(key), key) if isinstance(key, CONSTANT) else id(key)

    def _object(self, value: Any) -> Description:
        kind = type(value)
        own = getattr(value, "__dict__", None)
        if isinstance(value, Tensor | nn.Module) or (is_foreign(kind) and not isinstance(value, FOLLOWED)):
            return "object", id(value)
        if self.by_name and is_own_code(kind) and isinstance(own, dict) and not isinstance(value, FOLLOWED):
            self.objects[id(value)] = value, {}
            self.classes[kind] = None
            return "object", id(value)
        parts: list[Any] = []
        if isinstance(own, dict):
            self.snapshots.container(own, dict(own))
            parts += [(k, self(v)) for k, v in list(own.items())]
        slots = [n for c in kind.__mro__ for n in _slots(c) if hasattr(value, n)]
        if slots:
            self.snapshots.attributes(value, *slots)
            parts += [(n, self(getattr(value, n))) for n in slots]
        if isinstance(value, functools.partial):
            parts += [self(value.func), self(value.args), self(value.keywords)]
        if is_own_code(kind):
            self.classes[kind] = None
        return ("object", id(kind), *parts) if parts else ("object", id(value))


class NamedEntries:
    """The entries of a dictionary that have certain names, those that are not there yet among them."""

    def __init__(self, entries: dict[str, Any], names: Collection[str]) -> None:
        self.entries, self.names = entries, names

    def now(self) -> dict[str, Any]:
        """The entries as they are."""
        return {name: value for name, value in self.entries.items() if name in self.names}

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __eq__(self, other: object) -> bool:
        return self.now() == other

    __hash__ = None  # type: ignore[assignment]


class _Array:
    """An array that is compared by its contents."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __eq__(self, other: object) -> bool:
        return bool(np.array_equal(self.array, other, equal_nan=self.array.dtype.kind in "fc"))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))
