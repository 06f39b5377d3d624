"""Sympy for tensors: stable functions as atoms with their own derivative, and a printer to torch.

Sympy's own route is unusable in floating point: the derivative of log(1 + exp(x)) that it prints is nan from x = 89 on
in float32. So a function with a stable torch spelling is an atom here, its derivative is stated in atoms, and no
expression is ever simplified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy as sp
from sympy.printing.str import StrPrinter
from torch.utils._sympy import functions as torch_functions

x, y, out = sp.symbols("x y out", real=True)
"""First and second argument of an elementwise operation, and its result."""


def atom(name: str, spelling: str, slope: Callable[[sp.Expr, sp.Expr], sp.Expr]) -> type[sp.Function]:
    """A function of one argument. `slope(argument, result)` is its derivative."""
    return type(
        name,
        (sp.Function,),
        {"nargs": 1, "spelling": spelling, "fdiff": lambda self, argindex=1: sp.sympify(slope(self.args[0], self))},
    )


step = atom("step", "({0} > 0)", lambda a, s: 0)
relu = atom("relu", "torch.relu({0})", lambda a, s: step(a))
sigmoid = atom("sigmoid", "torch.sigmoid({0})", lambda a, s: s * sigmoid(-a))
softplus = atom("softplus", "F.softplus({0}, 1.0, 1e6)", lambda a, s: sigmoid(a))
tanh = atom("tanh", "torch.tanh({0})", lambda a, s: 1 - s**2)
log1p = atom("log1p", "torch.log1p({0})", lambda a, s: 1 / (1 + a))
expm1 = atom("expm1", "torch.expm1({0})", lambda a, s: sp.exp(a))
erf = atom("erf", "torch.erf({0})", lambda a, s: 2 / sp.sqrt(sp.pi) * sp.exp(-a * a))
erfc = atom("erfc", "torch.erfc({0})", lambda a, s: -2 / sp.sqrt(sp.pi) * sp.exp(-a * a))
erfinv = atom("erfinv", "torch.erfinv({0})", lambda a, s: sp.sqrt(sp.pi) / 2 * sp.exp(s * s))
ndtr = atom("ndtr", "torch.special.ndtr({0})", lambda a, s: sp.exp(-a * a / 2) / sp.sqrt(2 * sp.pi))
hypot1 = atom("hypot1", "torch.hypot({0}, torch.ones_like({0}))", lambda a, s: a / s)
lgamma = atom("lgamma", "torch.lgamma({0})", lambda a, s: digamma(a))
digamma = atom("digamma", "torch.digamma({0})", lambda a, s: trigamma(a))
trigamma = atom("trigamma", "torch.polygamma(1, {0})", lambda a, s: sp.polygamma(2, a))
sign = atom("sgn", "torch.sign({0})", lambda a, s: 0)
magnitude = atom("magnitude", "torch.abs({0})", lambda a, s: sign(a))
floor = atom("floor_", "torch.floor({0})", lambda a, s: 0)

_STOCK = {
    "exp": "torch.exp",
    "log": "torch.log",
    "sin": "torch.sin",
    "cos": "torch.cos",
    "tan": "torch.tan",
    "asin": "torch.asin",
    "acos": "torch.acos",
    "atan": "torch.atan",
    "sinh": "torch.sinh",
    "cosh": "torch.cosh",
    "asinh": "torch.asinh",
    "acosh": "torch.acosh",
    "atanh": "torch.atanh",
}
_ATOMS = {sp.tanh: tanh, sp.erf: erf, sp.erfc: erfc, sp.Abs: magnitude, sp.sign: sign, sp.loggamma: lgamma, sp.floor: floor}


def stable(expr: sp.Expr) -> sp.Expr:
    """`expr` with textbook forms replaced by stable atoms: log(1 + exp(a)) by softplus(a), 1/(1 + exp(-a)) by sigmoid(a)."""
    a = sp.Wild("a")
    expr = expr.replace(sp.log(1 + sp.exp(a)), softplus(a)).replace(1 / (1 + sp.exp(a)), sigmoid(-a))
    expr = expr.replace(sp.log(1 + a), log1p(a)).replace(sp.exp(a) - 1, expm1(a))
    for stock, ours in _ATOMS.items():
        expr = expr.replace(stock, ours)
    return expr.replace(sp.Max, _maximum).replace(sp.Min, _minimum)


def _maximum(first: sp.Expr, *rest: sp.Expr) -> sp.Expr:
    return relu(_maximum(*rest) - first) + first if rest else first


def _minimum(first: sp.Expr, *rest: sp.Expr) -> sp.Expr:
    return first - relu(first - _minimum(*rest)) if rest else first


class _TorchPrinter(StrPrinter):
    """Prints an expression as torch code. Arguments of `where` are tensors, so that a constant keeps their dtype."""

    like = "x"

    def _print_Function(self, e: sp.Function) -> str:
        arguments = [self._print(a) for a in e.args]
        if hasattr(type(e), "spelling"):
            return type(e).spelling.format(*arguments)
        if e.func.__name__ in _STOCK:
            return f"{_STOCK[e.func.__name__]}({', '.join(arguments)})"
        raise ValueError(f"no torch spelling for {e.func.__name__}: give it one with pccompile.ops.expressions.atom")

    _print_log = _print_sin = _print_cos = _print_tan = _print_Function

    def _print_ExpBase(self, e: sp.Function) -> str:
        return f"torch.exp({self._print(e.args[0])})"

    def _print_polygamma(self, e: sp.Function) -> str:
        return f"torch.polygamma({int(e.args[0])}, {self._print(e.args[1])})"

    def _number(self, e: sp.Expr) -> str:
        return repr(float(e))

    _print_Rational = _print_Float = _print_NumberSymbol = _number

    def emptyPrinter(self, expr: object) -> str:
        raise ValueError(f"no torch spelling for {type(expr).__name__}: {expr}")

    def _print(self, expr: object, **kwargs: object) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not expr.is_Integer:
            return self._number(expr)
        return str(super()._print(expr, **kwargs))

    def _print_Pow(self, e: sp.Pow, rational: bool = False) -> str:
        base, power = e.args
        if power == -1:
            return f"1 / {self.parenthesize(base, 60)}"
        if power == sp.Rational(1, 2):
            return f"torch.sqrt({self._print(base)})"
        if power == -sp.Rational(1, 2):
            return f"torch.rsqrt({self._print(base)})"
        if base.is_number:
            return f"torch.pow({self._print(base)}, {self._print(power)})"
        return f"{self.parenthesize(base, 60)} ** {self.parenthesize(power, 60)}"

    def _branch(self, e: sp.Expr) -> str:
        return f"torch.full_like({self.like}, {self._number(e)})" if e.is_number else self._print(e)

    def _print_Piecewise(self, e: sp.Piecewise) -> str:
        text = ""
        for value, condition in reversed(e.args):
            branch = self._branch(value)
            text = f"torch.where({self._print(condition)}, {branch}, {text})" if text else branch
        return text

    def _print_Relational(self, e: sp.Rel) -> str:
        return f"({self._print(e.lhs)} {e.rel_op} {self._print(e.rhs)})"

    def _print_And(self, e: sp.And) -> str:
        return f"({' & '.join(map(self._print, e.args))})"

    def _print_Or(self, e: sp.Or) -> str:
        return f"({' | '.join(map(self._print, e.args))})"


def torch_code(expr: sp.Expr, names: Mapping[str, str]) -> str:
    """Python source of `expr`, its symbols spelled as `names` says.

    Raises ValueError for a function without a torch spelling.
    """
    printer = _TorchPrinter()
    printer.like = next(iter(names.values()), "x")
    spelled = expr.xreplace({s: sp.Symbol(names[s.name], real=True) for s in expr.free_symbols})
    return str(printer.doprint(spelled))


class _DimPrinter(StrPrinter):
    """Prints a length as Python arithmetic on integers."""

    def _print_Function(self, e: sp.Function) -> str:
        first, *rest = [f"({self._print(a)})" for a in e.args]
        match type(e):
            case torch_functions.FloorDiv | torch_functions.CleanDiv:
                return f"({first} // {rest[0]})"
            case torch_functions.Mod | torch_functions.PythonMod | sp.Mod:
                return f"({first} % {rest[0]})"
            case torch_functions.Max | sp.Max:
                return f"max({', '.join([first, *rest])})"
            case torch_functions.Min | sp.Min:
                return f"min({', '.join([first, *rest])})"
            case torch_functions.ToFloat:
                return f"float({first})"
            case torch_functions.IntTrueDiv | torch_functions.FloatTrueDiv:
                return f"({first} / {rest[0]})"
            case torch_functions.TruncToInt:
                return f"int({first})"
        raise ValueError(f"no Python spelling for the length {e}")

    def _print_Piecewise(self, e: sp.Piecewise) -> str:
        text = ""
        for value, condition in reversed(e.args):
            text = f"({self._print(value)} if {self._print(condition)} else {text})" if text else self._print(value)
        return text


def dim_code(expr: sp.Expr) -> str:
    """Python source of a length."""
    return str(_DimPrinter().doprint(expr))
