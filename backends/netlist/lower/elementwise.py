"""Elementwise operations: an expression tree becomes sums with gains, maps of one variable, and products.

a x + b y + c        one sum population, a gain for each projection, a bias
f(x)                 one map population: the largest part of an expression that reads one signal
f(x) g(y)            product populations
f(x + y)             a map of the sum
x ** y, |x, y| …     written in the former
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy as sp
import torch

from pccompile.backends.netlist.circuit import Ids, finite
from pccompile.backends.netlist.expressions import X, function, text
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import Handler, lowers, lowers_where
from pccompile.backends.netlist.lower.values import Const, Signal, Values
from pccompile.backends.netlist.lower.wiring import moved
from pccompile.ir import Node, Ref
from pccompile.ops import definition
from pccompile.ops import expressions as atoms
from pccompile.ops.elementwise import arguments, number

Coefficient = float | np.ndarray


@dataclass
class Affine:
    """Σ coefficient · signal + bias, each in the shape of the result or a number."""

    terms: list[tuple[Ids, Coefficient]] = field(default_factory=list)
    bias: Coefficient = 0.0

    def plus(self, other: Affine) -> Affine:
        """The sum."""
        return Affine([*self.terms, *other.terms], self.bias + other.bias)

    def times(self, factor: Coefficient) -> Affine:
        """The product with something constant."""
        return Affine([(ids, c * factor) for ids, c in self.terms], self.bias * factor)


TWO = {
    atoms.hypot: lambda a, b: sp.sqrt(a * a + b * b),
    atoms.logaddexp: lambda a, b: b + atoms.softplus(a - b),
    atoms.xlogy: lambda a, b: sp.Piecewise((0, sp.Eq(a, 0)), (a * sp.log(b), True)),
    atoms.xlog1py: lambda a, b: sp.Piecewise((0, sp.Eq(a, 0)), (a * atoms.log1p(b), True)),
    atoms.copysign: lambda a, b: atoms.magnitude(a) * (2 * sp.Piecewise((1, b >= 0), (0, True)) - 1),
    atoms.divided_down: lambda a, b: atoms.floor(a / b),
    atoms.divided_to_zero: lambda a, b: atoms.trunc(a / b),
    atoms.heaviside: lambda a, b: atoms.step(a) + b * sp.Piecewise((1, sp.Eq(a, 0)), (0, True)),
}
"""Functions of two arguments in terms of functions of one."""


class Emitter:
    """Builds the units of one expression, the last of which is the value of the current node."""

    def __init__(self, lo: Lowering, shape: tuple[int, ...], symbols: dict[sp.Symbol, Signal | Const]) -> None:
        self.lo, self.shape, self.symbols = lo, shape, symbols

    def result(self, expr: sp.Expr) -> Ids:
        """The units that hold the value of `expr`."""
        for two, written in TWO.items():
            expr = expr.replace(two, written)
        return self.settled(self.build(expr, ""), "")

    def build(self, expr: sp.Expr, label: str) -> Affine:
        """`expr` as signals; new populations are called after the node, and `label`."""
        used = [s for s in self.symbols if s in expr.free_symbols]
        signals = [s for s in used if isinstance(self.symbols[s], Signal)]
        if not signals:
            return Affine(bias=self._number(expr, used))
        if expr in self.symbols:
            symbol = self.symbols[expr]
            assert isinstance(symbol, Signal)
            return Affine([(self._spread(symbol.ids), 1.0)])
        if isinstance(expr, sp.Add):
            return self._sum(expr, label)
        if isinstance(expr, sp.Mul) and (len(used) > 1 or _linear(expr, signals[0])):
            return self._product(expr, label)
        if used == signals and len(signals) == 1:
            (signal,) = (self.symbols[s] for s in signals)
            assert isinstance(signal, Signal)
            return self._map(expr.xreplace({signals[0]: X}), self._spread(signal.ids), label)
        return self._mixed(expr, label)

    def _sum(self, expr: sp.Add, label: str) -> Affine:
        """Terms that read one signal are one map together, where they are not linear in it."""
        total = Affine()
        groups: dict[Any, sp.Expr] = {}
        for term in expr.args:
            used = frozenset(s for s in self.symbols if s in term.free_symbols)
            single = len(used) == 1 and isinstance(self.symbols[min(used, key=str)], Signal)
            key = used if single and not _linear(term, next(iter(used))) else term
            groups[key] = groups.get(key, 0) + term
        whole = len(groups) == 1
        for i, part in enumerate(groups.values()):
            if whole and part == expr:
                (symbol,) = part.free_symbols & set(self.symbols)
                signal = self.symbols[symbol]
                assert isinstance(signal, Signal)
                return self._map(part.xreplace({symbol: X}), self._spread(signal.ids), label)
            total = total.plus(self.build(part, f"{label}_term{i + 1}"))
        return total

    def _product(self, expr: sp.Mul, label: str) -> Affine:
        """Constants scale; factors that read the same signal are one map; the others meet in product units."""
        scale: Coefficient = 1.0
        groups: dict[Any, sp.Expr] = {}
        for factor in expr.args:
            used = frozenset(s for s in self.symbols if s in factor.free_symbols)
            if not any(isinstance(self.symbols[s], Signal) for s in used):
                scale = scale * self._number(factor, list(used))
            else:
                key = used if len(used) == 1 else factor
                groups[key] = groups.get(key, sp.Integer(1)) * factor
        plain = isinstance(scale, float) and scale == 1.0
        last = label if plain else f"{label}_product"
        parts = [
            self.build(f, f"{label}_factor{i + 1}" if len(groups) > 1 else last) for i, f in enumerate(groups.values())
        ]
        total = parts[0]
        for i, part in enumerate(parts[1:]):
            name = last if i == len(parts) - 2 else f"{label}_product{i + 1}"
            x, y = (self.settled(p, f"{label}_operand{i + 1}{k}") for k, p in (("x", total), ("y", part)))
            total = Affine([(self.lo.products(x, y, name), 1.0)])
        return total.times(scale)

    def _map(self, expr: sp.Expr, ids: Ids, label: str) -> Affine:
        """A population of f(x)."""
        try:
            written = text(expr)
        except ValueError as e:
            raise Unsupported(str(e)) from e
        name = self.lo.population("map", self.shape, [ids], label, function=written)
        self.lo.c.formulas[name] = expr
        self.lo.c.project(ids, name)
        return Affine([(self.lo.c.ids(name), 1.0)])

    def _mixed(self, expr: sp.Expr, label: str) -> Affine:
        """A function of several signals: of the value of its argument, or written in functions of one."""
        inner = f"{label}_inner"
        if isinstance(expr, sp.Pow):
            base, power = expr.args
            if power.is_number:
                return self._map(X**power, self.settled(self.build(base, inner), inner), label)
            return self.build(sp.exp(power * sp.log(base)), label)
        if isinstance(expr, sp.Piecewise):
            return self._branches(expr, label)
        if isinstance(expr, sp.Function) and len(expr.args) == 1:
            return self._map(expr.func(X), self.settled(self.build(expr.args[0], inner), inner), label)
        raise Unsupported(f"{type(expr).__name__} of several values")

    def _branches(self, expr: sp.Piecewise, label: str) -> Affine:
        """other + gate · (value − other), from the last branch to the first."""
        result = expr.args[-1].args[0]
        for value, condition in reversed(expr.args[:-1]):
            if not isinstance(condition, sp.core.relational.Relational):
                raise Unsupported("a condition made of several")
            difference = condition.lhs - condition.rhs
            gate = sp.Symbol(f"gate{len(self.symbols)}", real=True)
            test = type(condition)(X, 0)
            ids = self.settled(self.build(difference, f"{label}_test"), f"{label}_test")
            self.symbols[gate] = Signal(
                self.settled(self._map(sp.Piecewise((1, test), (0, True)), ids, f"{label}_gate"), "")
            )
            result = result + gate * (value - result)
        return self.build(sp.expand(result, deep=False), label)

    def _number(self, expr: sp.Expr, used: list[sp.Symbol]) -> Coefficient:
        """The value of an expression without signals."""
        if not used:
            return float(expr)
        if len(used) > 1:
            raise Unsupported("several constant tensors in one expression")
        constant = self.symbols[used[0]]
        assert isinstance(constant, Const)
        found = function(text(expr.xreplace({used[0]: X})))(constant.tensor.to(torch.float64))
        return finite(np.broadcast_to(found.numpy(), self.shape))

    def _spread(self, ids: Ids) -> Ids:
        return np.broadcast_to(ids, self.shape)

    def settled(self, value: Affine, label: str) -> Ids:
        """The units that hold `value`: its one signal as it is, or a sum population."""
        if len(value.terms) == 1 and not np.any(value.bias) and isinstance(value.terms[0][1], float):
            ids, gain = value.terms[0]
            if gain == 1:
                return ids
        bias = None
        if np.any(value.bias):
            bias = self.lo.c.tensor("const", finite(np.broadcast_to(value.bias, self.shape)))
        name = self.lo.population("sum", self.shape, [ids for ids, _ in value.terms], label, bias=bias)
        for ids, gain in value.terms:
            spread = gain if isinstance(gain, float) else np.broadcast_to(gain, self.shape)
            self.lo.c.project(ids, name, gain=spread)
        return self.lo.c.ids(name)


def _linear(expr: sp.Expr, symbol: sp.Symbol) -> bool:
    """Whether `expr` is a number times `symbol`."""
    return bool(expr == symbol) or (isinstance(expr, sp.Mul) and not (expr / symbol).free_symbols)


CANCELLING = ("aten.logaddexp.default",)
"""Operations whose units add and subtract the same number, so that it must not be large."""


@lowers_where(lambda op: op.formula is not None)
def elementwise(lo: Lowering, n: Node) -> Values:
    """The circuit of an operation with a formula."""
    formula = definition(n.op).formula
    assert formula is not None
    operands = {s: n[a] for s, a in arguments(n.op) if n[a] is not None}
    expr = formula(n)
    if n.op in CANCELLING and any(np.isin(lo.ids(v), lo.c.infinite).any() for v in operands.values()):
        raise Unsupported("of −∞, which is a finite number here, and would cancel what it is added to")
    numbers = {s: number(v) for s, v in operands.items() if isinstance(v, bool | int | float)}
    return built(lo, sp.sympify(expr).xreplace(numbers), {s: v for s, v in operands.items() if isinstance(v, Ref)})


def built(lo: Lowering, expr: sp.Expr, operands: dict[sp.Symbol, Any]) -> Signal:
    """The units of an expression whose symbols are tensors."""
    symbols: dict[sp.Symbol, Signal | Const] = {}
    for s, v in operands.items():
        tensor = lo.constant(v)
        if tensor is not None and tensor.numel() == 1:
            expr = expr.xreplace({s: number(float(finite(tensor.numpy()).reshape(-1)[0]))})
        else:
            symbols[s] = Const(tensor) if tensor is not None else Signal(lo.ids(v))
    signal = Emitter(lo, lo.shape(), symbols).result(expr)
    return Signal(np.broadcast_to(signal, lo.shape()))


x, y = atoms.x, atoms.y


def _compares(relation: Callable[..., Any]) -> Handler:
    """1 where the comparison holds, else 0: a step, which carries no error."""

    def compared(lo: Lowering, n: Node) -> Values:
        difference = built(lo, x - y, {x: n["self"], y: n["other"]})
        return built_map(lo, sp.Piecewise((1, relation(X, 0)), (0, True)), difference.ids)

    return compared


lowers("aten.eq.Scalar", "aten.eq.Tensor")(_compares(sp.Eq))
lowers("aten.ne.Scalar", "aten.ne.Tensor")(_compares(sp.Ne))
lowers("aten.gt.Scalar", "aten.gt.Tensor")(_compares(sp.Gt))
lowers("aten.ge.Scalar", "aten.ge.Tensor")(_compares(sp.Ge))
lowers("aten.lt.Scalar", "aten.lt.Tensor")(_compares(sp.Lt))
lowers("aten.le.Scalar", "aten.le.Tensor")(_compares(sp.Le))


def built_map(lo: Lowering, expr: sp.Expr, ids: Ids) -> Signal:
    """A population of f(x) over a signal."""
    emitter = Emitter(lo, tuple(ids.shape), {})
    return Signal(emitter.settled(emitter._map(expr, ids, ""), ""))


def _logical(truth: sp.Expr) -> Handler:
    """A function of the truth values 0 and 1."""
    return lambda lo, n: built(lo, truth, {s: n[k] for s, k in ((x, "self"), (y, "other")) if k in n.args})


lowers("aten.logical_not.default", "aten.bitwise_not.default")(_logical(1 - x))
lowers("aten.logical_and.default", "aten.bitwise_and.Tensor")(_logical(x * y))
lowers("aten.logical_or.default", "aten.bitwise_or.Tensor")(_logical(x + y - x * y))


@lowers("aten.where.self")
def chosen(lo: Lowering, n: Node) -> Values:
    """By a fixed condition it is wiring; by one that is computed, other + condition · (self − other)."""
    if lo.constant(n["condition"]) is not None:
        return moved(lo, n)
    c = sp.Symbol("c", real=True)
    return built(lo, y + c * x - c * y, {x: n["self"], y: n["other"], c: n["condition"]})


@lowers("aten.masked_fill.Scalar")
def filled(lo: Lowering, n: Node) -> Values:
    """By a fixed mask it is wiring; by one that is computed, x + mask · (value − x)."""
    if lo.constant(n["mask"]) is not None:
        return moved(lo, n)
    c = sp.Symbol("c", real=True)
    value = number(float(finite(np.asarray(n["value"]))))
    return built(lo, x + c * value - c * x, {x: n["self"], c: n["mask"]})


@lowers("aten._to_copy.default")
def cast(lo: Lowering, n: Node) -> Values:
    """Units hold real numbers: a cast among them is nothing, one to integers drops the fraction."""
    of, to = lo.types[n["self"]], n.tensor.dtype
    if to.is_complex or getattr(of, "dtype", to).is_complex:
        raise Unsupported("complex numbers")
    if to.is_floating_point or not getattr(of, "dtype", to).is_floating_point:
        return lo.value(n["self"])
    ids = lo.ids(n["self"])
    return built_map(lo, sp.Piecewise((1, sp.Ne(X, 0)), (0, True)) if to == torch.bool else atoms.trunc(X), ids)
