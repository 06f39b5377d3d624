"""What a user's code reads besides its arguments: globals, closure cells, defaults and class attributes.

A captured program has the numbers and flags in it that the code read when it was captured. Code is followed from a
model's `forward` by the names in it, through the user's helper functions, classes and custom autograd Functions.
"""

from __future__ import annotations

import dis
import functools
import itertools
import types
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from pccompile.frontends.snapshots import Describer, Description, NamedEntries, is_own_code

BY_ANY_NAME = frozenset(
    (
        "getattr",
        "hasattr",
        "vars",
        "__dict__",
        "attrgetter",
        "asdict",
        "astuple",
        "__getattribute__",
        "methodcaller",
        "eval",
    )
)
"""Names of what reads attributes that no code names."""
ALWAYS = ("forward", "backward", "setup_context", "__call__", "__init__", "__getattr__", "__torch_function__")
"""Methods that run without being named."""


@functools.lru_cache(4096)
def names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that code and all code within it read from outside, and all names that it reads attributes by."""
    globals_ = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = names_in(constant)
            globals_ |= inner[0]
            names |= inner[1]
    return frozenset(globals_), frozenset(names)


def functions_of(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions in what stands in a class: a function, a method, a property."""
    match value:
        case types.FunctionType():
            yield value
        case staticmethod() | classmethod() | types.MethodType() | functools.cached_property():
            yield from functions_of(value.func if isinstance(value, functools.cached_property) else value.__func__)
        case property():
            yield from functions_of(value.fget)
            yield from functions_of(value.fset)
        case functools.partial():
            yield from functions_of(value.func)
        case _:
            if hasattr(value, "__wrapped__") and not isinstance(value, type):
                yield from functions_of(getattr(value, "__wrapped__", None))


def functions_in(value: Any) -> list[types.FunctionType]:
    """The Python functions that run when a callable is called."""
    kinds = (k.__dict__["__call__"] for k in type(value).__mro__ if "__call__" in k.__dict__)
    return list(functions_of(value)) or list(functions_of(next(kinds, None)))


class CodeReads:
    """Follows code, and has the values that it reads described and watched by `describe`.

    unread: variables around functions that are left out. `variables` are the names of the others.
    """

    def __init__(self, describe: Describer, unread: Collection[types.CellType] = ()) -> None:
        self.describe = describe
        self.descriptions: list[Description] = []
        self.variables: dict[int, str] = {}
        self._unread = {id(cell) for cell in unread}
        self._names: set[str] = set(ALWAYS)
        self._globals: dict[int, tuple[dict[str, Any], dict[str, None]]] = {}
        self._modules: dict[int, tuple[Any, dict[str, None]]] = {}
        self._functions: dict[types.FunctionType, None] = {}
        self._classes: dict[int, tuple[Any, dict[str, None]]] = {}

    def follow(self, classes: Iterable[type]) -> tuple[Description, ...]:
        """Descriptions of everything that the code of `classes`, and of all that was described so far, reads."""
        describe = self.describe
        describe.classes.update(dict.fromkeys(c for c in classes if is_own_code(c)))
        count = -1
        parts = (
            self._names,
            describe.functions,
            describe.classes,
            describe.named_classes,
            describe.objects,
            self._modules,
        )
        while count != (count := sum(map(len, parts))):
            for function in list(describe.functions):
                self._function(function)
            for kind in list(describe.classes):
                self._class(kind)
            for owner, known in (*self._modules.values(), *self._classes.values(), *describe.objects.values()):
                self._entries(owner, known)
        for owner, read in self._globals.values():
            describe.snapshots.entries(owner, list(read))
        for owner, known in (*self._modules.values(), *self._classes.values()):
            if known:
                describe.snapshots.attributes(owner, *known)
        for owner, _ in describe.objects.values():
            part = NamedEntries(vars(owner), self.names)
            describe.snapshots.container(part, part.now())
        return tuple(self.descriptions)

    @property
    def names(self) -> frozenset[str]:
        """All names in the code that was followed."""
        return frozenset(self._names)

    def _function(self, function: types.FunctionType) -> None:
        if function in self._functions:
            return
        self._functions[function] = None
        read, names = names_in(function.__code__)
        self._names |= names
        _, known = self._globals.setdefault(id(function.__globals__), (function.__globals__, {}))
        for name in sorted(read):
            if name in function.__globals__ and name not in known:
                known[name] = None
                self._read(name, function.__globals__[name])
        self.describe.snapshots.attributes(function, "__code__", "__defaults__", "__kwdefaults__")
        self.descriptions.append(("__code__", function.__code__))  # reloading puts other code into the same function
        self._read("__defaults__", (function.__defaults__, function.__kwdefaults__))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) in self._unread:
                continue
            self.variables[id(cell)] = name
            try:
                self.describe.snapshots.attributes(cell, "cell_contents")
            except ValueError:  # empty: a function that is defined later
                continue
            self._read(name, cell.cell_contents)

    def _read(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            if is_own_code(_Named(value.__name__)):
                self._modules.setdefault(id(value), (value, {}))
            return
        self.descriptions.append((name, self.describe(value)))

    def _class(self, kind: type) -> None:
        """Follow the methods of a class that code names or that run unnamed; all, where objects are followed whole."""
        self._classes.setdefault(id(kind), (kind, {}))
        by_name = self.describe.by_name
        every = not issubclass(kind, torch.nn.Module) and not by_name
        unnamed = () if not by_name or kind in self.describe.named_classes else ("__init__", "__post_init__")
        for base in kind.__mro__:
            for name, value in [] if not is_own_code(base) else list(vars(base).items()):
                runs = every or name in self._names or (by_name and name.startswith("__"))
                if runs and name not in unnamed:  # what made an object does not run again
                    for function in functions_of(value):
                        if is_own_code(function):
                            self.describe.functions[function] = None

    def _entries(self, owner: Any, known: dict[str, None]) -> None:
        """Describe what code may read from a class or from the file of a module."""
        tables = [vars(b) for b in owner.__mro__ if is_own_code(b)] if isinstance(owner, type) else [vars(owner)]
        for name in sorted(self._names.intersection(itertools.chain(*tables)) - known.keys()):
            known[name] = None
            value = next(t[name] for t in tables if name in t)
            if isinstance(owner, type) and isinstance(value, (types.FunctionType, property, classmethod, staticmethod)):
                self.descriptions.append((name, id(value)))
            else:
                self._read(name, value)


class _Named:
    def __init__(self, name: str) -> None:
        self.__module__ = name
