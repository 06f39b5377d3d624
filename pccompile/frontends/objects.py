"""Objects among a model's arguments and results, opened so that the tensors in them are found.

A class of the user's is registered with torch's pytree when an object of it is met: its attributes are the leaves, and
an object is put together again without its `__init__`. So torch.export, and a call of a program, take it as they take a
dict.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CaptureError, CompileError

CLOSED = (Tensor, nn.Module, type, enum.Enum, str, bytes, int, float, complex, list, tuple, set, frozenset)
"""Objects that are leaves, or no containers of leaves to be put together again."""
FIXED = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum, types.ModuleType, nn.Module)
"""Attributes that are a part of an object's form, as are functions and classes: a call in another one is compiled."""
FOREIGN = ("torch", "numpy", "builtins", "functools", "pccompile")
"""Packages whose classes are left as they are."""


def open_objects(tree: Any) -> Any:
    """`tree`, the classes of whose objects are registered. Raises CompileError for an object that holds itself."""
    _open(tree, ())
    return tree


def _open(tree: Any, around: tuple[int, ...]) -> None:
    for leaf in pytree.tree_leaves(tree):
        if not opens(leaf):
            continue
        if id(leaf) in around:
            what = f"a {type(leaf).__name__} among the arguments or results holds itself"
            raise CompileError(what, hint="pass the tensors in it")
        children, _ = _flatten(leaf)
        _open(children, (*around, id(leaf)))
        if type(leaf) not in pytree.SUPPORTED_NODES:
            _register(type(leaf))


def opens(leaf: Any) -> bool:
    """Whether a value is an object of a user's class, with attributes."""
    kind = type(leaf)
    if leaf is None or isinstance(leaf, CLOSED) or callable(leaf) or isinstance(leaf, types.ModuleType):
        return False
    if kind.__module__.partition(".")[0] in FOREIGN or kind in pytree.SUPPORTED_NODES:
        return False
    plain = kind.__new__ is (dict.__new__ if isinstance(leaf, dict) else object.__new__)
    return plain and (hasattr(leaf, "__dict__") or any(True for _ in _slots(kind)))


def _slots(kind: type) -> Iterator[str]:
    """The names of the slots of a class, without those for its dict and weak references."""
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__"))


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, by name."""
    slots = {s: getattr(value, s) for s in _slots(type(value)) if hasattr(value, s)}
    return {**slots, **getattr(value, "__dict__", {})}


def _flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
    fields = _fields(value)
    fixed = {k: v for k, v in fields.items() if isinstance(v, FIXED) or callable(v)}
    free = {k: v for k, v in fields.items() if k not in fixed}
    entries = dict(value) if isinstance(value, dict) else {}
    return [*free.values(), *entries.values()], (type(value), tuple(free), tuple(entries), tuple(fixed.items()))


def _with_keys(value: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children, context = _flatten(value)
    keys = [*map(pytree.GetAttrKey, context[1]), *map(pytree.MappingKey, context[2])]
    return list(zip(keys, children, strict=True)), context


def _unflatten(children: Any, context: tuple[Any, ...]) -> Any:
    kind, fields, entries, fixed = context
    values, fields = [*(v for _, v in fixed), *children], (*(k for k, _ in fixed), *fields)
    made = kind.__new__(kind)
    own = getattr(made, "__dict__", None)
    for name, value in zip(fields, values, strict=False):
        if own is None or name in set(_slots(kind)):
            object.__setattr__(made, name, value)
        else:
            own[name] = value
    if entries:
        dict.update(made, zip(entries, values[len(fields) :], strict=True))
    return made


def _register(kind: type) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    pytree.register_pytree_node(kind, _flatten, _unflatten, serialized_type_name=name, flatten_with_keys_fn=_with_keys)


def refuse_additions(before: list[Any], after: list[Any]) -> None:
    """Raise CaptureError where forward has put tensors into its arguments. before, after: the leaves of these."""
    known = set(map(id, before))
    if new := sum(isinstance(v, Tensor | torch.SymInt) and id(v) not in known for v in after):
        what = f"forward puts {new} new tensor{'s' if new > 1 else ''} into its arguments"
        raise CaptureError(what, hint="return them")
