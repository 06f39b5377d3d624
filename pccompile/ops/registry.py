"""What an operation is: its family, rule, spelling and test samples. One OpDef each, nothing elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from pccompile.ir import DEVICE, Arg, Node, Ref, TensorType, Type

if TYPE_CHECKING:
    from pccompile.ops.builder import Builder

Family = Literal["elementwise", "linear", "multilinear", "selection", "composite", "context", "traced"]
Message = Ref | None | tuple["Ref | None", ...]
Rule = Callable[["Builder", Node, Any], Mapping[str, Message]]
Sample = Callable[[], tuple[Any, ...]]
"""Makes an operator's arguments, float tensors in float64. Where the last is a dict, it holds keyword arguments."""


@dataclass(frozen=True)
class OpDef:
    """One operation of the dialect.

    rule(b, node, err)    writes J_iᵀ err for each argument i that carries an error, as operations, with the builder `b`
    expand(b, node)       writes the operation in terms of others; it is then gone after canonicalisation
    compose(b, node)      writes an operation that has a fused rule in simple ones, for a backend without its kernel
    spell(texts, args)    Python source of the call, from the source of each argument; None: the generic spelling
    wiring                moves entries about and computes nothing: it gets no value and no error of its own
    equation              what a reader sees, `x` and `y` for the arguments
    dense                 arguments that the kernel reads as they lie in memory, in place of what their strides say
    results               what several results are called; the first, where it is the value itself, ""
    samples               arguments for the test that runs every operation
    parameters, infer     for operations that torch does not have: argument names, and the result's type
    helper                source of functions that the generated file needs to run it
    formula(node)         the sympy expression of an elementwise operation
    ends_layer            ends a layer, as a nonlinearity does, though it is not elementwise
    activation            a nonlinearity of one value, as torch.nn has them
    recurrent             a layer over time: errors pass its weights and nonlinearities on their way to these weights
    random                draws numbers: once for each prediction
    misjudged             why eager torch's own gradient through it is no reference; "" where it is one
    """

    name: str
    family: Family
    rule: Rule | None = None
    expand: Callable[[Builder, Node], Message] | None = None
    compose: Callable[[Builder, Node], Message] | None = None
    spell: Callable[[Mapping[str, Any], Mapping[str, Arg]], str] | None = None
    wiring: bool = False
    equation: str = ""
    results: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    parameters: tuple[str, ...] = ()
    infer: Callable[[Mapping[str, Arg], Callable[[Ref], TensorType]], Type] | None = None
    helper: str = ""
    ends_layer: bool = False
    activation: bool = False
    recurrent: bool = False
    random: bool = False
    misjudged: str = ""
    formula: Callable[[Node], Any] | None = None


OPS: dict[str, OpDef] = {}


def define(op: OpDef) -> OpDef:
    """Register `op`. Raises ValueError where its name is taken."""
    if op.name in OPS:
        raise ValueError(f"{op.name} is defined twice")
    OPS[op.name] = op
    return op


def rewrite(name: str, expand: Callable[[Builder, Node], Any], family: Family = "composite") -> OpDef:
    """Define the operation `name` by others: expand(b, node) writes them."""
    return define(OpDef(name, family, expand=expand))


def family_of(op: str) -> Family:
    """The family of the operation called `op`; 'traced' where no file defines it."""
    return OPS[op].family if op in OPS else "traced"


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
    if name in OPS and OPS[name].parameters:
        return tuple((p, ...) for p in OPS[name].parameters)
    arguments = overload(name)._schema.arguments
    return tuple((a.name, a.default_value if a.has_default_value() else ...) for a in arguments)


def result_name(op: str, index: int) -> str:
    """What result number `index` of an operation is called: as its definition or its schema says, else the number."""
    if op in OPS and OPS[op].results:
        return OPS[op].results[index]
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
