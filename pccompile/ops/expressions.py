"""Sympy for tensors: stable functions as atoms with their own derivative, and a printer to torch.

Sympy's own route is unusable in floating point: the derivative of log(1 + exp(x)) that it prints is nan from x = 89 on
in float32. So a function with a stable torch spelling is an atom here, its derivative is stated in atoms, and no
expression is ever simplified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy as sp
from sympy.printing.str import StrPrinter
from torch.utils._sympy import functions as torch_functions

x, y, out = sp.symbols("x y out", real=True)
"""First and second argument of an elementwise operation, and its result."""


def atom(name: str, spelling: str, *slopes: Callable[..., Any]) -> type[sp.Function]:
    """A function of as many arguments as it has slopes: slopes[i](*arguments, result) is the derivative by the i-th."""

    def fdiff(self: sp.Function, argindex: int = 1) -> sp.Expr:
        return sp.sympify(slopes[argindex - 1](*self.args, self))

    return type(name, (sp.Function,), {"nargs": len(slopes), "spelling": spelling, "fdiff": fdiff})


def _flat(*_: sp.Expr) -> int:
    return 0


def _at_zero(a: sp.Expr, slope: sp.Expr) -> sp.Expr:
    """`slope`, and its limit ½ where it would divide by zero."""
    return sp.Piecewise((slope, magnitude(a) > 1e-30), (sp.Rational(1, 2), True))


step = atom("step", "({0} > 0)", _flat)
relu = atom("relu", "torch.relu({0})", lambda a, s: step(a))
sigmoid: type[sp.Function] = atom("sigmoid", "torch.sigmoid({0})", lambda a, s: s * sigmoid(-a))
softplus = atom("softplus", "F.softplus({0}, 1.0, 1e6)", lambda a, s: sigmoid(a))
tanh = atom("tanh", "torch.tanh({0})", lambda a, s: 1 - s**2)
log1p = atom("log1p", "torch.log1p({0})", lambda a, s: 1 / (1 + a))
expm1 = atom("expm1", "torch.expm1({0})", lambda a, s: sp.exp(a))
erf = atom("erf", "torch.erf({0})", lambda a, s: 2 / sp.sqrt(sp.pi) * sp.exp(-a * a))
erfc = atom("erfc", "torch.erfc({0})", lambda a, s: -2 / sp.sqrt(sp.pi) * sp.exp(-a * a))
erfinv = atom("erfinv", "torch.erfinv({0})", lambda a, s: sp.sqrt(sp.pi) / 2 * sp.exp(s * s))
ndtr = atom("ndtr", "torch.special.ndtr({0})", lambda a, s: sp.exp(-a * a / 2) / sp.sqrt(2 * sp.pi))
erfcx = atom("erfcx", "torch.special.erfcx({0})", lambda a, s: 2 * a * s - 2 / sp.sqrt(sp.pi))
log_ndtr = atom("log_ndtr", "torch.special.log_ndtr({0})", lambda a, s: sp.sqrt(2 / sp.pi) / erfcx(-a / sp.sqrt(2)))
ndtri = atom("ndtri", "torch.special.ndtri({0})", lambda a, s: sp.sqrt(2 * sp.pi) * sp.exp(s * s / 2))
hypot = atom("hypot", "torch.hypot({0}, {1})", lambda a, b, s: a / s, lambda a, b, s: b / s)
hypot1 = atom("hypot1", "torch.hypot({0}, torch.ones_like({0}))", lambda a, s: a / s)
atan2 = atom(
    "atan2", "torch.atan2({0}, {1})", lambda a, b, s: b / (a * a + b * b), lambda a, b, s: -a / (a * a + b * b)
)
logaddexp = atom(
    "logaddexp", "torch.logaddexp({0}, {1})", lambda a, b, s: sigmoid(a - b), lambda a, b, s: sigmoid(b - a)
)
xlogy = atom("xlogy", "torch.xlogy({0}, {1})", lambda a, b, s: sp.log(b), lambda a, b, s: a / b)
xlog1py = atom("xlog1py", "torch.special.xlog1py({0}, {1})", lambda a, b, s: log1p(b), lambda a, b, s: a / (1 + b))
lgamma = atom("lgamma", "torch.lgamma({0})", lambda a, s: digamma(a))
digamma: type[sp.Function] = atom("digamma", "torch.digamma({0})", lambda a, s: trigamma(a))
trigamma: type[sp.Function] = atom("trigamma", "torch.polygamma(1, {0})", lambda a, s: sp.polygamma(2, a))
i0 = atom("i0", "torch.special.i0({0})", lambda a, s: i1(a))
i1: type[sp.Function] = atom("i1", "torch.special.i1({0})", lambda a, s: _at_zero(a, i0(a) - s / a))
i0e = atom("i0e", "torch.special.i0e({0})", lambda a, s: i1e(a) - sign(a) * s)
i1e: type[sp.Function] = atom("i1e", "torch.special.i1e({0})", lambda a, s: _at_zero(a, i0e(a) - s * (sign(a) + 1 / a)))
sinc = atom("sinc", "torch.sinc({0})", lambda a, s: sinc_slope(a))
sinc_slope: type[sp.Function] = atom(
    "sinc_slope",
    "torch.where({0} == 0, 0, (torch.cos(math.pi * {0}) - torch.sinc({0})) / torch.where({0} == 0, 1, {0}))",
    _flat,
)
sign: type[sp.Function] = atom("sgn", "torch.sign({0})", _flat)
magnitude = atom("magnitude", "torch.abs({0})", lambda a, s: sign(a))
floor = atom("floor_", "torch.floor({0})", _flat)
ceil = atom("ceil_", "torch.ceil({0})", _flat)
trunc = atom("trunc", "torch.trunc({0})", _flat)
rounded = atom("round", "torch.round({0})", _flat)
heaviside = atom("step_at", "torch.heaviside({0}, {1})", _flat, _flat)
divided_down = atom("divided_down", "torch.div({0}, {1}, rounding_mode='floor')", _flat, _flat)
divided_to_zero = atom("divided_to_zero", "torch.div({0}, {1}, rounding_mode='trunc')", _flat, _flat)
copysign = atom("copysign", "torch.copysign({0}, {1})", lambda a, b, s: sign(a) * sign(s), _flat)

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
_ATOMS = {
    sp.tanh: tanh,
    sp.erf: erf,
    sp.erfc: erfc,
    sp.Abs: magnitude,
    sp.sign: sign,
    sp.loggamma: lgamma,
    sp.floor: floor,
}


def stable(expr: sp.Expr) -> sp.Expr:
    """`expr` with textbook forms replaced by stable atoms: log(1 + exp(a)) by softplus(a), and so on."""
    a = sp.Wild("a")
    expr = expr.replace(sp.log(1 + sp.exp(a)), softplus(a)).replace(1 / (1 + sp.exp(a)), sigmoid(-a))
    expr = expr.replace(_is_log_of_one_more, lambda e: log1p(e.args[0] - 1)).replace(sp.exp(a) - 1, expm1(a))
    for stock, ours in _ATOMS.items():
        expr = expr.replace(stock, ours)
    return expr.replace(sp.Max, _maximum).replace(sp.Min, _minimum)


def _is_log_of_one_more(e: sp.Expr) -> bool:
    """Whether `e` is log(1 + …); log(x) is 1 more than x − 1 as well, but cancels digits as log1p(x − 1)."""
    return isinstance(e, sp.log) and e.args[0].is_Add and sp.S.One in e.args[0].args


def _maximum(first: sp.Expr, *rest: sp.Expr) -> sp.Expr:
    return relu(_maximum(*rest) - first) + first if rest else first


def _minimum(first: sp.Expr, *rest: sp.Expr) -> sp.Expr:
    return first - relu(first - _minimum(*rest)) if rest else first


class NumberPrinter(StrPrinter):
    """Prints numbers so that they read back exactly, and powers of e as `exp`."""

    def _print_ExpBase(self, e: sp.Function) -> str:
        return f"exp({self._print(e.args[0])})"

    def _print_Float(self, e: sp.Expr) -> str:
        return repr(float(e))

    _print_NumberSymbol = _print_Pi = _print_Exp1 = _print_Float


class ConditionPrinter(NumberPrinter):
    """Prints conditions as Python has them for tensors, `&` and `|` between parentheses."""

    def _print_Relational(self, e: sp.Rel) -> str:
        return f"({self._print(e.lhs)} {e.rel_op} {self._print(e.rhs)})"

    def _print_And(self, e: sp.And) -> str:
        return f"({' & '.join(map(self._print, e.args))})"

    def _print_Or(self, e: sp.Or) -> str:
        return f"({' | '.join(map(self._print, e.args))})"


class _TorchPrinter(ConditionPrinter):
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

    _print_Rational = NumberPrinter._print_Float

    def _print_Integer(self, e: sp.Integer) -> str:
        return str(e) if abs(int(e)) < 2**63 else repr(float(e))

    def emptyPrinter(self, expr: object) -> str:
        raise ValueError(f"no torch spelling for {type(expr).__name__}: {expr}")

    def _print(self, expr: object, **kwargs: object) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not expr.is_Integer:
            return repr(float(expr))
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
        return f"torch.full_like({self.like}, {float(e)!r})" if e.is_number else self._print(e)

    def _print_Piecewise(self, e: sp.Piecewise) -> str:
        text = ""
        for value, condition in reversed(e.args):
            branch = self._branch(value)
            text = f"torch.where({self._print(condition)}, {branch}, {text})" if text else branch
        return text


def torch_code(expr: sp.Expr, names: Mapping[str, str]) -> str:
    """Python source of `expr`, its symbols spelled as `names` says.

    Raises ValueError for a function without a torch spelling.
    """
    printer = _TorchPrinter()
    printer.like = next(iter(names.values()), "x")
    spelled = expr.xreplace({s: sp.Symbol(names[s.name], real=True) for s in expr.free_symbols})
    return str(printer.doprint(spelled))


class _DimPrinter(StrPrinter):
    """Prints a length, or a number that follows from lengths, as Python arithmetic."""

    def _quotient(self, over: sp.Expr, under: sp.Expr) -> str:
        """A quotient, infinite where a length makes it a division by zero, as among torch's own numbers."""
        text = f"({self._print(over)}) / ({self._print(under)})"
        least = under.xreplace({s: sp.Symbol(s.name, integer=True, nonnegative=True) + 2 for s in under.free_symbols})
        return f"({text})" if least.is_positive else f"({text} if {self._print(under)} else float('inf'))"

    def _print_Mul(self, e: sp.Mul) -> str:
        over, under = sp.fraction(e)
        return self._quotient(over, under) if under.free_symbols else str(super()._print_Mul(e))

    def _print_Pow(self, e: sp.Pow, rational: bool = False) -> str:
        over, under = sp.fraction(e)
        return self._quotient(over, under) if under.free_symbols else str(super()._print_Pow(e, rational))

    def _print_Function(self, e: sp.Function) -> str:
        first, *rest = [f"({self._print(a)})" for a in e.args]
        match type(e):
            case torch_functions.FloorDiv | torch_functions.CleanDiv:
                return f"({first} // {rest[0]})"
            case sp.floor | sp.ceiling:
                over, under = (self._print(part) for part in sp.fraction(sp.together(e.args[0])))
                return f"(({over}) // {under})" if isinstance(e, sp.floor) else f"(-(-({over}) // {under}))"
            case torch_functions.Mod | torch_functions.PythonMod | sp.Mod:
                return f"({first} % {rest[0]})"
            case torch_functions.Max | sp.Max:
                return f"max({', '.join([first, *rest])})"
            case torch_functions.Min | sp.Min:
                return f"min({', '.join([first, *rest])})"
            case torch_functions.ToFloat:
                return f"float({first})"
            case torch_functions.IntTrueDiv | torch_functions.FloatTrueDiv:
                return self._quotient(*e.args)
            case torch_functions.TruncToInt:
                return f"int({first})"
        raise ValueError(f"no Python spelling for the length {e}")

    _print_LatticeOp = _print_Max = _print_Min = _print_Function

    def _print_Piecewise(self, e: sp.Piecewise) -> str:
        text = ""
        for value, condition in reversed(e.args):
            text = f"({self._print(value)} if {self._print(condition)} else {text})" if text else self._print(value)
        return text


def dim_code(expr: sp.Expr) -> str:
    """Python source of a length."""
    return str(_DimPrinter().doprint(expr))
