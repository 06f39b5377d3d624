"""Functions of `map` units as NumPy source."""

from __future__ import annotations

import ast
import math

import torch

from pccompile.backends.netlist.expressions import function

_UFUNCS = {
    **{n: n for n in ("exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sqrt", "log1p", "expm1", "floor",
                      "ceil", "trunc", "sign", "abs", "sinc", "i0")},
    **{n: f"arc{n[1:]}" for n in ("asin", "acos", "atan", "asinh", "acosh", "atanh")},
    "round": "rint",
}  # fmt: skip
_FORMS = {
    **{name: f"np.{ufunc}({{0}})" for name, ufunc in _UFUNCS.items()},
    **{n: f"special.{n}({{0}})" for n in ("erfinv", "digamma", "ndtri", "erfcx", "log_ndtr", "i1", "i0e", "i1e")},
    **{n: f"np.vectorize(math.{n}, otypes=[float])({{0}})" for n in ("erf", "erfc", "lgamma")},
    "ndtr": "np.vectorize(lambda a: math.erfc(-a / math.sqrt(2)) / 2, otypes=[float])({0})",
    "trigamma": "special.polygamma(1, {0})",
    "sigmoid": "1 / (1 + np.exp(-({0})))",
    "relu": "np.maximum({0}, 0)",
    "softplus": "np.logaddexp(0, {0})",
    "step": "np.greater({0}, 0).astype(float)",
    "sinc_slope": "np.where(np.equal({0}, 0), 0, (np.cos(np.pi * ({0})) - np.sinc({0})) / np.where({0}, {0}, 1))",
    "hypot1": "np.hypot({0}, 1)",
}  # fmt: skip
"""What each function of the language is in NumPy; `special` is SciPy's, for what NumPy does not have."""

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|"}
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


def numpy_source(text: str) -> str:
    """The NumPy expression in x of a function of the language. Raises ValueError for any other text."""
    function(text)
    return _source(ast.parse(text, mode="eval").body)


def _source(node: ast.expr) -> str:
    if not isinstance(node, ast.Constant | ast.Compare) and not _condition(node) and _constant(node):
        return _written(float(function(ast.unparse(node))(torch.zeros(1, dtype=torch.float64))))
    match node:
        case ast.Constant(value=bool(value)):
            return repr(value)
        case ast.Constant(value=int() | float() as value):
            return _written(float(value))
        case ast.Name():
            return "x"
        case ast.UnaryOp(operand=operand):
            return f"(-{_number(operand)})"
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr() as op, left=left, right=right):
            return f"({_source(left)} {_BINARY[type(op)]} {_source(right)})"
        case ast.BinOp(op=op, left=left, right=right):
            return f"({_number(left)} {_BINARY[type(op)]} {_number(right)})"
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"({_source(left)} {_COMPARED[type(op)]} {_source(right)})"
        case ast.Call(func=ast.Name(id="Piecewise"), args=branches):
            pairs = (f"({_number(b.elts[0])}, {_source(b.elts[1])})" for b in branches if isinstance(b, ast.Tuple))
            return f"piecewise({', '.join(pairs)})"
        case ast.Call(func=ast.Name(id="polygamma"), args=[order, of]):
            return f"special.polygamma({int(float(_source(order)))}, {_number(of)})"
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return f"({_FORMS[name].format(*map(_number, arguments))})"
    raise ValueError(f"no NumPy for {ast.unparse(node)[:80]}")


def _condition(node: ast.expr) -> bool:
    """Whether a node is true or false, unit by unit."""
    match node:
        case ast.Compare() | ast.Constant(value=bool()) | ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
            return True
    return False


def _constant(node: ast.expr) -> bool:
    """Whether a node is the same number whatever x is."""
    return not any(isinstance(n, ast.Name) and n.id == "x" for n in ast.walk(node))


def _number(node: ast.expr) -> str:
    """A node as a number: 1 or 0 where it is a condition."""
    return f"({_source(node)} * 1.0)" if _condition(node) else _source(node)


def _written(value: float) -> str:
    """A number, also one that is not finite."""
    return repr(value) if math.isfinite(value) else f"np.{value}" if value >= 0 or value != value else "-np.inf"
