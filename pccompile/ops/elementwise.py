"""Elementwise operations: one sympy expression is the whole definition.

The message err · ∂f/∂x, its torch code, the equation shown and the netlist's function unit follow from it. Where ATen has
a kernel for the message, the torch backend calls it instead (`kernel`): the two are held equal by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch

from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.expressions import (
    out,
    softplus,
    stable,
    torch_code,
    x,
    y,
)
from pccompile.ops.registry import OpDef, Sample, define, overload

Kernel = Callable[[Builder, Node, Ref], Ref]
Formulate = Callable[[Node], sp.Expr]


@dataclass(frozen=True)
class Formula:
    """A sympy expression as an argument of a node."""

    expr: sp.Expr

    def __str__(self) -> str:
        return str(self.expr)


def arguments(name: str) -> tuple[tuple[sp.Symbol, str], ...]:
    """The symbols of an elementwise operation's expression and the schema arguments that they stand for.

    The first two tensor arguments are `x` and `y`; every other argument goes by its own name.
    """
    found, tensors = [], [x, y]
    for a in overload(name)._schema.arguments:
        tensor = str(a.type) in ("Tensor", "Optional[Tensor]")
        found.append((tensors.pop(0) if tensor and tensors else sp.Symbol(a.name, real=True), a.name))
    return tuple(found)


def elementwise(
    name: str,
    expr: sp.Expr | Callable[[Node], sp.Expr],
    *,
    kernel: Kernel | None = None,
    slopes: Mapping[sp.Symbol, sp.Expr] | None = None,
    spell: Callable[[Mapping[str, Any], Mapping[str, Arg]], str] | None = None,
    samples: tuple[Sample, ...] = (),
    equation: str = "",
) -> OpDef:
    """Define the operation `name` as `expr`, or as `expr(node)` where an option decides.

    `slopes` state derivatives better than sympy would, by the result `out`; `kernel` is ATen's own message.
    """
    symbols = arguments(name)
    default = samples or (_sample(sum(s in (x, y) for s, _ in symbols)),)
    formula = expr if callable(expr) and not isinstance(expr, sp.Expr) else lambda node: expr
    rule = _rule(symbols, formula, slopes or {}, kernel)
    return define(
        OpDef(name, "elementwise", rule, spell=spell, samples=default, equation=equation or str(expr), formula=formula)
    )


def _rule(symbols: Any, formula: Formulate, slopes: Mapping[sp.Symbol, sp.Expr], kernel: Kernel | None) -> Any:
    def rule(b: Builder, node: Node, err: Ref) -> dict[str, Ref | None]:
        expr = formula(node)
        values = {s: node[a] for s, a in symbols if s in expr.free_symbols or isinstance(node[a], Ref)} | {out: Ref(node.name)}
        messages: dict[str, Ref | None] = {}
        for symbol, argument in symbols:
            if symbol not in (x, y) or not isinstance(node[argument], Ref) or node[argument] not in b.wants:
                continue
            if kernel is not None:
                messages[argument] = kernel(b, node, err)
            else:
                slope = slopes[symbol] if symbol in slopes else sp.diff(expr, symbol)
                messages[argument] = times_slope(b, err, slope, values)
        return messages

    return rule


def times_slope(b: Builder, err: Ref, slope: sp.Expr, values: Mapping[sp.Symbol, Arg]) -> Ref | None:
    """err · slope, the slope as an operation of its own so that it can be hoisted; None where it is zero."""
    numbers = {s: v for s, v in values.items() if not isinstance(v, Ref) and s in slope.free_symbols}
    slope = slope.xreplace({s: sp.Float(v, 17) if isinstance(v, float) else sp.sympify(v) for s, v in numbers.items()})
    if slope == 0:
        return None
    if slope in (1, -1):
        return err if slope == 1 else b("aten.neg.default", err)
    if slope.is_number:
        return b.mul(err, float(slope))
    if slope.is_Symbol:
        return b.mul(err, values[slope])
    used = sorted((s for s in values if s in slope.free_symbols), key=str)
    return b.mul(err, b("pcc.map", Formula(slope), tuple(s.name for s in used), tuple(values[s] for s in used)))


def _map_type(args: Mapping[str, Arg], type_of: Callable[[Ref], TensorType]) -> TensorType:
    types = [type_of(a) for a in args["args"]]  # type: ignore[attr-defined]
    shape: tuple[Any, ...] = ()
    for t in types:
        n = max(len(shape), len(t.shape))
        pairs = zip((1,) * (n - len(shape)) + shape, (1,) * (n - len(t.shape)) + t.shape, strict=True)
        shape = tuple(q if p == 1 else p for p, q in pairs)
    dtype = types[0].dtype
    for t in types[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return TensorType(shape, dtype)


def _spell_map(texts: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    return torch_code(args["expr"].expr, dict(zip(args["names"], texts["args"], strict=True)))


define(OpDef("pcc.map", "elementwise", parameters=("expr", "names", "args"), infer=_map_type, spell=_spell_map))


def _sample(tensors: int) -> Sample:
    return lambda: tuple(torch.randn(4, 3, dtype=torch.float64) for _ in range(tensors))


def user_elementwise(op: object, formula: Callable[..., sp.Expr]) -> OpDef:
    """Define a user's own torch operator by an expression; it is printed as that expression, so nothing else is needed.

    op: what `torch.library.custom_op` returns, or an OpOverload. formula: from sympy symbols, one for each tensor
    argument, to an expression. Raises TypeError for anything else and ValueError for a function that has no torch spelling.
    """
    op = getattr(op, "_opoverload", op)
    if isinstance(op, torch._ops.OpOverloadPacket):
        op = getattr(op, op.overloads()[0])
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(
            "register_elementwise takes an operator made with torch.library.custom_op; "
            f"{getattr(op, '__name__', op)!r} is a plain function, which is compiled without being registered"
        )
    name = str(op) if str(op).count(".") == 2 else f"{op.namespace}.{op._opname}.{op._overloadname}"
    symbols = [(s, a) for s, a in arguments(name) if s in (x, y)]
    expr = stable(sp.sympify(formula(*(s for s, _ in symbols))))
    torch_code(expr, {s.name: s.name for s in expr.free_symbols})
    return define(
        OpDef(
            name,
            "elementwise",
            _rule(tuple(symbols), lambda node: expr, {}, None),
            spell=lambda texts, _: torch_code(expr, {s.name: texts[a] for s, a in symbols}),
            equation=str(expr),
            samples=(_sample(len(symbols)),),
            formula=lambda node: expr,
        )
    )


__all__ = ["Formula", "elementwise", "softplus", "stable", "times_slope", "user_elementwise"]
