"""How operations are called: their operators in torch, the names of arguments and results, defaults filled in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from pccompile.ir import DEVICE, Arg, Ref, TensorType, Type


@dataclass(frozen=True)
class Signature:
    """What must be known of an operation to write a call and to tell its type.

    results: what several results are called; the first, where it is the value itself, "". random: it draws numbers,
    once for each prediction. parameters, infer: for operations that torch does not have: argument names, and the
    result's type.
    """

    name: str
    _: KW_ONLY
    results: tuple[str, ...] = ()
    random: bool = False
    parameters: tuple[str, ...] = ()
    infer: Callable[[Mapping[str, Arg], Callable[[Ref], TensorType]], Type] | None = None


SIGNATURES: dict[str, Signature] = {}
"""Of the operations that are defined (ops.registry)."""


@functools.cache
def overload(name: str) -> torch._ops.OpOverload:
    """The torch operator called `name`, such as "aten.mul.Tensor"."""
    namespace, packet, which = name.split(".")
    found = getattr(getattr(getattr(torch.ops, namespace), packet), which)
    assert isinstance(found, torch._ops.OpOverload)
    return found


@functools.cache
def schema(name: str) -> tuple[tuple[str, Any], ...]:
    """Argument names of an operation with their defaults (`...` where there is none)."""
    if name == "getitem":
        return (("of", ...), ("index", ...))
    if name in SIGNATURES and SIGNATURES[name].parameters:
        return tuple((p, ...) for p in SIGNATURES[name].parameters)
    arguments = overload(name)._schema.arguments
    return tuple((a.name, a.default_value if a.has_default_value() else ...) for a in arguments)


def result_name(op: str, index: int) -> str:
    """What result number `index` of an operation is called: as its definition or its schema says, else the number."""
    if op in SIGNATURES and SIGNATURES[op].results:
        return SIGNATURES[op].results[index]
    declared = overload(op)._schema.returns if op.startswith("aten.") else ()
    return (declared[index].name if index < len(declared) else "") or str(index)


IGNORED = {"layout", "pin_memory", "memory_format", "non_blocking"}
"""Arguments that say where bytes lie, not what they are."""


def bind(name: str, args: Iterable[Arg], kwargs: Mapping[str, Arg]) -> dict[str, Arg]:
    """Every argument of a call to the operation `name`, by name and with defaults filled in."""
    parameters = schema(name)
    given = dict(zip((p for p, _ in parameters), args, strict=False)) | dict(kwargs)
    bound: dict[str, Arg] = {}
    for parameter, default in parameters:
        value = given.get(parameter, default)
        if value is ...:
            raise TypeError(f"{name}: argument {parameter} is missing")
        if parameter in IGNORED:
            value = None
        elif parameter == "device" and value is not None:
            value = DEVICE
        bound[parameter] = tuple(value) if isinstance(value, list) else value
    return bound
