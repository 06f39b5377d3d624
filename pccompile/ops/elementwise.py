"""Elementwise operations: one sympy expression is the whole definition.

The message err · ∂f/∂x, its torch code, the equation shown and the netlist's function unit follow from it. Where ATen
has a kernel for the message, the torch backend calls it instead (`kernel`): the two are held equal by a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch

from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.expressions import out, torch_code, x, y
from pccompile.ops.registry import Message, OpDef, Rule, Sample, define
from pccompile.ops.signatures import overload
from pccompile.ops.trace import traced_rule, unless_complex

Kernel = Callable[[Builder, Node, Ref], Ref | None]
Formulate = Callable[[Node], sp.Expr]
Symbols = Sequence[tuple[sp.Symbol, str]]


@dataclass(frozen=True)
class Formula:
    """A sympy expression as an argument of a node."""

    expr: sp.Expr

    def __str__(self) -> str:
        return str(self.expr)


OPERANDS = ("self", "other", "exponent")


def arguments(name: str) -> tuple[tuple[sp.Symbol, str], ...]:
    """The symbols of an elementwise operation's expression and the schema arguments that they stand for.

    The first two tensors, or numbers in their place, are `x` and `y`; every other argument goes by its own name.
    """
    found, tensors = [], [x, y]
    for a in overload(name)._schema.arguments:
        operand = str(a.type) in ("Tensor", "Optional[Tensor]") or a.name in OPERANDS
        found.append((tensors.pop(0) if operand and tensors else sp.Symbol(a.name, real=True), a.name))
    return tuple(found)


def elementwise(
    name: str,
    expr: sp.Expr | Formulate,
    *,
    kernel: Kernel | Mapping[sp.Symbol, Kernel] | None = None,
    slopes: Mapping[sp.Symbol, sp.Expr] | None = None,
    samples: tuple[Sample, ...] = (),
    equation: str = "",
    **more: Any,
) -> OpDef:
    """Define the operation `name` as `expr`, or as `expr(node)` where an option decides.

    `slopes` state derivatives better than sympy would, by the result `out`; `kernel` is ATen's own message, one for
    each argument where it is a mapping. `more` are fields of its OpDef.
    """
    symbols = arguments(name)
    default = samples or (_sample(sum(s in (x, y) for s, _ in symbols)),)
    formula = expr if callable(expr) and not isinstance(expr, sp.Expr) else lambda node: expr
    rule = rule_of(symbols, formula, slopes or {}, kernel)
    more |= {"equation": equation or str(expr), "formula": formula, "samples": default}
    return define(name, "elementwise", rule, **more)


def rule_of(symbols: Symbols, formula: Formulate, slopes: Mapping[sp.Symbol, sp.Expr], kernel: Any) -> Rule:
    """The rule err · ∂f/∂x of an elementwise operation, for each of its arguments that carries an error."""

    def rule(b: Builder, node: Node, err: Ref) -> dict[str, Ref | None]:
        values = {s: node[a] for s, a in symbols if node[a] is not None} | {out: Ref(node.name)}
        messages: dict[str, Ref | None] = {}
        for symbol, argument in symbols:
            if not isinstance(node[argument], Ref) or node[argument] not in b.wants:
                continue
            own = kernel.get(symbol) if isinstance(kernel, Mapping) else kernel
            if own is not None:
                messages[argument] = own(b, node, err)
            else:
                messages[argument] = times_slope(b, err, slope_of(formula(node), symbol, slopes), values)
        return messages

    def guarded(b: Builder, node: Node, err: Any) -> Mapping[str, Message]:
        return (rule if is_real(node, symbols, formula, slopes) else traced_rule)(b, node, err)

    return unless_complex(guarded)


def is_real(node: Node, symbols: Symbols, formula: Formulate, slopes: Mapping[sp.Symbol, sp.Expr]) -> bool:
    """Whether an expression says what happens at a node's numbers: it knows no infinity and no zero with a sign."""
    numbers = {s: node[a] for s, a in symbols if isinstance(node[a], int | float)}
    if any(
        isinstance(v, float) and (not math.isfinite(v) or (v == 0 and math.copysign(1, v) < 0))
        for v in numbers.values()
    ):
        return False
    if 0 not in numbers.values():
        return True
    known = {s: number(v) for s, v in numbers.items()}
    found = (slope_of(formula(node), s, slopes).xreplace(known) for s, a in symbols if isinstance(node[a], Ref))
    return not any(slope.has(sp.zoo, sp.nan, sp.oo) for slope in map(sp.sympify, found))


def slope_of(expr: sp.Expr, symbol: sp.Symbol, slopes: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    """The derivative of `expr` by `symbol`, as stated or else as sympy finds it."""
    return slopes[symbol] if symbol in slopes else sp.diff(expr, symbol)


def number(value: Any) -> sp.Expr:
    """A Python number as sympy has it: whole ones exactly, others in full precision."""
    if isinstance(value, float) and value.is_integer():
        return sp.Integer(int(value))
    return sp.Float(value, 17) if isinstance(value, float) else sp.Integer(value)


def times_slope(b: Builder, err: Ref, slope: sp.Expr, values: Mapping[sp.Symbol, Arg]) -> Ref | None:
    """err · slope, the slope as an operation of its own so that it can be hoisted; None where it is zero."""
    numbers = {s: number(v) for s, v in values.items() if isinstance(v, bool | int | float)}
    slope = sp.sympify(slope).xreplace(numbers)
    if slope == 0:
        return None
    if slope in (1, -1):
        return err if slope == 1 else b("aten.neg.default", err)
    if slope.is_number:
        return b.mul(err, float(slope))
    if slope.is_Symbol:
        return b.mul(err, values[slope])
    used = sorted(
        (s for s in values if s in slope.free_symbols), key=lambda s: (not isinstance(values[s], Ref), str(s))
    )
    if not isinstance(values[used[0]], Ref):
        return b.mul(err, slope.xreplace({s: values[s] for s in used}))
    return b.mul(err, b("pcc.map", Formula(slope), tuple(s.name for s in used), tuple(values[s] for s in used)))


def _map_type(args: Mapping[str, Arg], type_of: Callable[[Ref], TensorType]) -> TensorType:
    types = [type_of(a) for a in args["args"] if isinstance(a, Ref)]
    shape: tuple[Any, ...] = ()
    for t in types:
        n = max(len(shape), len(t.shape))
        pairs = zip((1,) * (n - len(shape)) + shape, (1,) * (n - len(t.shape)) + t.shape, strict=True)
        shape = tuple(q if p == 1 else p for p, q in pairs)
    dtype = types[0].dtype
    for t in types[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return TensorType(shape, dtype)


def _spell_map(a: Mapping[str, Any]) -> str:
    return torch_code(a["expr"].expr, {name: f"args[{i}]" for i, name in enumerate(a["names"])})


define("pcc.map", "elementwise", parameters=("expr", "names", "args"), infer=_map_type, spell=_spell_map)


def _sample(tensors: int) -> Sample:
    return lambda: tuple(torch.randn(4, 3, dtype=torch.float64) for _ in range(tensors))
