"""The functions of `map` units as text, and back: arithmetic in x that is parsed, never executed.

The language is that of docs/netlist.md: numbers, x, + - * / **, comparisons, `&`, and the functions of FUNCTIONS.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
import torch
from torch import Tensor

from pccompile.diagnostics import first_line
from pccompile.limits import exceeded, limit
from pccompile.ops import expressions as atoms

X = sp.Symbol("x", real=True)


def _piecewise(*branches: tuple[Any, Any]) -> Any:
    """The value of the first branch whose condition holds, of the last where none does."""
    result: Any = None
    for value, condition in reversed(branches):
        if result is None or condition is True:
            result = value
            continue
        if condition is False:
            continue
        value, result = (torch.as_tensor(v, dtype=torch.float64) for v in (value, result))
        result = torch.where(condition, value, result)
    return result


def _tensorwise(f: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    return lambda a: f(torch.as_tensor(a, dtype=torch.float64))


def _sinc_slope(a: Tensor) -> Tensor:
    """The derivative of sinc: (cos πx − sinc x) / x, and 0 at 0."""
    return torch.where(a == 0, 0, (torch.cos(math.pi * a) - torch.sinc(a)) / torch.where(a == 0, 1, a))


def _whole(n: Any) -> int:
    if not isinstance(n, float) or n != int(n):
        raise ValueError("the order of polygamma is a whole number")
    return int(n)


def _number(a: Any) -> Any:
    """A condition as 1 or 0, a number as itself."""
    if isinstance(a, Tensor):
        return a.to(torch.float64) if a.dtype == torch.bool else a
    return float(a)


def _arithmetic(act: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`act` on tensors, and on numbers by the rules of IEEE 754 rather than those of Python."""

    def apply(a: Any, b: Any) -> Any:
        a, b = _number(a), _number(b)
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return act(a, b)
        with np.errstate(all="ignore"):
            return float(act(np.float64(a), np.float64(b)))

    return apply


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{n: _tensorwise(getattr(torch, n)) for n in (
        "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "tanh",
        "sigmoid", "relu", "sqrt", "log1p", "expm1", "erf", "erfc", "erfinv", "floor", "ceil", "trunc", "round",
        "lgamma", "digamma", "sinc")},
    **{n: _tensorwise(getattr(torch.special, n)) for n in ("ndtr", "ndtri", "erfcx", "log_ndtr", "i0", "i1", "i0e",
                                                          "i1e")},
    "softplus": _tensorwise(lambda a: torch.nn.functional.softplus(a, 1.0, 1e6)),
    "step": _tensorwise(lambda a: (a > 0).to(torch.float64)),
    "sign": _tensorwise(torch.sign),
    "abs": _tensorwise(torch.abs),
    "trigamma": _tensorwise(lambda a: torch.polygamma(1, a)),
    "sinc_slope": _tensorwise(_sinc_slope),
    "hypot1": _tensorwise(lambda a: torch.hypot(a, torch.ones_like(a))),
    "polygamma": lambda n, a: torch.polygamma(_whole(n), torch.as_tensor(a, dtype=torch.float64)),
    "Piecewise": _piecewise,
}  # fmt: skip
"""What a function of the language does."""

_SPELLED = {"sgn": "sign", "magnitude": "abs", "floor_": "floor", "ceil_": "ceil", "Abs": "abs"}
_BINARY = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: _arithmetic(operator.truediv),
    ast.Pow: _arithmetic(operator.pow),
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARED = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
LONGEST = 10_000
"""The most characters of an expression."""


class _Printer(atoms.ConditionPrinter):
    """Prints an expression in the language."""

    def _print_Function(self, e: sp.Function) -> str:
        name = _SPELLED.get(type(e).__name__, type(e).__name__)
        if name not in FUNCTIONS:
            raise ValueError(f"the netlist has no function {name}")
        return f"{name}({', '.join(map(self._print, e.args))})"

    _print_log = _print_sin = _print_cos = _print_tan = _print_Abs = _print_polygamma = _print_Function

    def _print_Pow(self, e: sp.Pow, rational: bool = False) -> str:
        base, power = e.args
        if power == -1:
            return f"1/{self.parenthesize(base, 60)}"
        if power == sp.Rational(1, 2):
            return f"sqrt({self._print(base)})"
        if power == -sp.Rational(1, 2):
            return f"1/sqrt({self._print(base)})"
        return f"{self.parenthesize(base, 61)}**{self.parenthesize(power, 60)}"


def text(expr: sp.Expr) -> str:
    """An expression in x as text of the language. Raises ValueError for a function that it does not have."""
    written = str(_Printer().doprint(expr))
    function(written)
    return written


@functools.lru_cache(maxsize=4096)
def function(source: str) -> Callable[[Tensor], Tensor]:
    """The function of a float64 tensor that a text of the language says. Raises ValueError for any other text."""
    if len(source) > LONGEST:
        raise ValueError(f"an expression of {len(source)} characters")
    try:
        tree = ast.parse(source, mode="eval").body
        if (levels := _levels(tree)) > limit("depth"):
            raise ValueError(exceeded("depth", levels, limit("depth"), f"{source[:80]!r}").problems[0].what)
        evaluate = _compiled(tree)
        torch.as_tensor(evaluate(torch.zeros(2, dtype=torch.float64)), dtype=torch.float64).expand(2)
    except (SyntaxError, MemoryError, RecursionError) as e:
        raise ValueError(f"no expression in x: {source[:80]!r}") from e
    except (TypeError, RuntimeError, ArithmeticError) as e:
        raise ValueError(f"{source[:80]!r} cannot be computed: {first_line(e)}") from e

    def apply(x: Tensor) -> Tensor:
        return torch.as_tensor(evaluate(x), dtype=torch.float64).expand(x.shape)

    return apply


def _levels(tree: ast.expr) -> int:
    """How many expressions lie inside each other."""
    levels, level = 0, list[ast.AST]([tree])
    while level:
        levels += any(isinstance(node, ast.expr) for node in level)
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return levels


def _compiled(node: ast.expr) -> Callable[[Any], Any]:
    """A function of x from a syntax tree of which only what the language has is let through."""
    match node:
        case ast.Constant(value=bool(value)):
            return lambda x: value
        case ast.Constant(value=int() | float() as value):
            number = float(value)  # powers of whole numbers could take for ever
            if not math.isfinite(number):
                raise ValueError("numbers of an expression are finite")
            return lambda x: number
        case ast.Name(id="x"):
            return lambda x: x
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _compiled(operand)
            return lambda x: -_number(inner(x))
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            act, first, second = _BINARY[type(op)], _compiled(left), _compiled(right)
            return lambda x: act(first(x), second(x))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
            act, first, second = _COMPARED[type(op)], _compiled(left), _compiled(right)
            return lambda x: act(first(x), second(x))
        case ast.Call(func=ast.Name(id="Piecewise"), args=branches, keywords=[]) if branches:
            pairs = [_branch(b) for b in branches]
            return lambda x: _piecewise(*((value(x), condition(x)) for value, condition in pairs))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS and name != "Piecewise":
            act, inners = FUNCTIONS[name], [_compiled(a) for a in arguments]
            return lambda x: act(*(i(x) for i in inners))
    raise ValueError(f"not in the language of netlists: {ast.unparse(node)[:80]}")


def _branch(node: ast.expr) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    match node:
        case ast.Tuple(elts=[value, condition]):
            return _compiled(value), _compiled(condition)
    raise ValueError(f"a branch of Piecewise is (value, condition): {ast.unparse(node)[:80]}")


def derivative(expr: sp.Expr) -> sp.Expr:
    """The derivative by x, each function by its own stable one."""
    return sp.diff(expr, X)
