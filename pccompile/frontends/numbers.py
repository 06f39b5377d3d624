"""Numbers that a model reads from its tensors (`.item()`), kept as tensors without dimensions.

Such a number is known only when the model runs, and no error passes through it. Where it is an operand it can stay a
tensor; where it decides a size or a setting it cannot.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from pccompile.ir import DEVICE, Arg, Ref, TensorType, Type, refs
from pccompile.ops import Builder, overload, schema
from pccompile.ops.functions import STOP

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
READS = ("aten.item.default", "aten._local_scalar_dense.default")
ARITHMETIC = {
    "add": "aten.add.Tensor",
    "sub": "aten.sub.Tensor",
    "mul": "aten.mul.Tensor",
    "truediv": "aten.div.Tensor",
    "pow": "aten.pow.Tensor_Tensor",
    "neg": "aten.neg.default",
    "sqrt": "aten.sqrt.default",
    "sin": "aten.sin.default",
    "cos": "aten.cos.default",
    "exp": "aten.exp.default",
    "log": "aten.log.default",
}


class Read(Ref):
    """A number that is read from a tensor, or computed from such: the name of a tensor without dimensions."""

    __slots__ = ()


def is_read(value: object) -> bool:
    """Whether a number in an exported program is known only when the program runs."""
    return isinstance(value, torch.SymInt | torch.SymFloat) and bool(free_unbacked_symbols(value))


def only_asserted(n: fx.Node) -> bool:
    """Whether nothing but assertions read a number, which then decides nothing."""
    return all(
        only_asserted(u)
        if isinstance(u.meta.get("val"), SYMBOLIC)
        else u.op != "output" and u.meta.get("val") is None and not u.users
        for u in n.users
    )


def number(b: Builder, target: object, args: tuple[Arg, ...], value: object) -> Read | None:
    """The number that `target(*args)` reads or computes; None where that has no form with tensors."""
    dtype = torch.int64 if isinstance(value, torch.SymInt) else torch.float64
    if str(target) in READS:
        tensor = b.view(args[0], ())
    else:
        if not all(isinstance(a, Ref | int | float | sympy.Expr) for a in args):
            return None
        name = getattr(target, "__name__", str(target)).removeprefix("_").removeprefix("sym_")
        operands = tuple(_tensor(b, a) for a in args)
        if name == "float":
            (tensor,) = operands
        elif name in ARITHMETIC:
            tensor = b(ARITHMETIC[name], *(b("aten._to_copy.default", a, dtype=dtype) for a in operands))
        else:
            return None
    if b.type(tensor).dtype is not dtype:
        tensor = b("aten._to_copy.default", tensor, dtype=dtype)
    return Read(b(STOP, tensor))


def _tensor(b: Builder, arg: Arg) -> Ref:
    if isinstance(arg, Ref):
        return arg
    whole = not isinstance(arg, float) and bool(getattr(arg, "is_integer", True))
    return b("aten.full.default", (), arg, dtype=torch.int64 if whole else torch.float64, device=DEVICE)


def with_operands(b: Builder, op: str, bound: Mapping[str, Arg], result: Type) -> tuple[str, dict[str, Arg]] | None:
    """A call that reads numbers, with tensors in their place; None where it takes them as sizes or settings.

    A tensor without dimensions takes the type that keeps that of the result as it is with a number.
    """
    if op == "aten.full.default" and isinstance(bound["fill_value"], Read) and isinstance(result, TensorType):
        filled = b("aten._to_copy.default", Ref(bound["fill_value"]), dtype=result.dtype)
        return "aten.expand.default", {"self": filled, "size": result.shape, "implicit": False}
    form = tensor_form(op)
    kinds = {a.name: str(a.type) for a in overload(form)._schema.arguments}
    if form != op:
        bound = {name: bound.get(name, None) for name, _ in schema(form)}
    dtype = result[0].dtype if isinstance(result, tuple) and result[0] else getattr(result, "dtype", torch.float32)
    if not (dtype.is_floating_point or dtype.is_complex):
        others = [b.type(r).dtype for r in refs(bound.values()) if not isinstance(r, Read) and r in b.types]
        dtype = others[0] if others else dtype
    operands = dict(bound)
    for name, arg in bound.items():
        if isinstance(arg, tuple) and any(isinstance(a, Read) for a in arg):
            return None
        if isinstance(arg, Read) and "Tensor" not in kinds[name]:
            return None
        if isinstance(arg, Read):
            keep = b.type(arg).dtype is dtype or not (dtype.is_floating_point or dtype.is_complex)
            operands[name] = Ref(arg) if keep else b("aten._to_copy.default", Ref(arg), dtype=dtype)
        elif form != op and isinstance(arg, int | float) and "Tensor" in kinds[name]:
            operands[name] = b("aten.full.default", (), arg, dtype=dtype, device=DEVICE)
    return form, operands


@functools.cache
def tensor_form(op: str) -> str:
    """The form of an operator that takes tensors in place of all its numbers; `op` itself where there is none."""
    namespace, packet, _ = op.split(".")
    kinds = {a.name: str(a.type) for a in overload(op)._schema.arguments}
    tensors = {name for name, kind in kinds.items() if "Tensor" in kind}
    best, most = op, tensors
    for name in getattr(getattr(torch.ops, namespace), packet).overloads():
        form = overload(f"{namespace}.{packet}.{name}")
        arguments = form._schema.arguments
        taken = {a.name for a in arguments if "Tensor" in str(a.type)}
        numbers = all("number" in kinds.get(t, "") for t in taken - tensors)
        if not form._schema.is_mutable and [a.name for a in arguments] == [*kinds] and numbers and taken > most:
            best, most = f"{namespace}.{packet}.{name}", taken
    return best


def lengths_of(n: fx.Node) -> Iterator[sympy.Symbol]:
    """The names of lengths and numbers that what a node yields is written with."""
    for value in pytree.tree_leaves(n.meta.get("val")):
        sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
        for size in sizes:
            if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
                yield from size.node.expr.free_symbols


def relied_on(n: fx.Node) -> tuple[fx.Node, int, Any] | None:
    """What `n` asserts of a length that data decides: the tensor, the axis, and the size that it must have.

    A number that was read from a tensor goes by the length's name by now, so that the tensor stands for it.
    None where `n` asserts nothing, or something else. Of two such lengths it is the later that must be the earlier.
    """
    equal = n.args[0] if n.target is torch.ops.aten._assert_scalar.default else None
    if not isinstance(equal, fx.Node) or equal.target is not operator.eq:
        return None
    sizes = [a for a in equal.args if isinstance(a, fx.Node) and a.target is torch.ops.aten.sym_size.int]
    if not sizes:
        return None
    last: Any = max(sizes, key=list(n.graph.nodes).index)
    tensor, axis = last.args
    size: Any = equal.args[1] if equal.args[0] is last else equal.args[0]
    read = isinstance(size, fx.Node) and size.target is torch.ops.aten.item.default
    return tensor, axis, size.args[0] if read else size
