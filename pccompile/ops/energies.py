r"""Energies of vertices: E(v, v̂) = −log p as one sympy expression, from which what a vertex sends and holds follows.

    send = −∂E/∂v̂          hold = ∂E/∂v          force = pull − hold

E is that of one element; a vertex's energy is its sum. Over the last dimension, `logsoftmax(vhat)` may stand in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from pccompile.diagnostics import CompileError, printable
from pccompile.ir import Energy
from pccompile.ir.equations import ELEMENTWISE
from pccompile.ops.expressions import NumberPrinter, atom, log1p, magnitude, sigmoid, softplus, stable, step

value, prediction, error = sp.symbols("value prediction error", real=True)
"""v, v̂ and v − v̂ as the equations of a program call them."""


def _no_slope(*_: sp.Expr) -> sp.Expr:
    raise TypeError("the derivative of a function of a whole row is not elementwise")


logsoftmax = atom("logsoftmax", "", _no_slope)
softmax = atom("softmax", "", _no_slope)
total = atom("total", "", _no_slope)


@dataclass(frozen=True)
class Named:
    """An energy that is known by name.

    density: E of symbols v, v̂ and the parameters. parameters: their defaults; all are positive. entropy: what
    `entropy=True` adds, where without it E falls for ever along v; rest: where E is then least in v.
    """

    density: Callable[..., Any]
    parameters: Mapping[str, float]
    entropy: Callable[[sp.Expr], Any] | None = None
    rest: Callable[[sp.Expr], Any] | None = None


def _huber(v: sp.Expr, p: sp.Expr, delta: sp.Expr) -> sp.Expr:
    size = magnitude(v - p)
    return sp.Piecewise(((v - p) ** 2 / 2, size <= delta), (delta * (size - delta / 2), True))


ENERGIES: Mapping[str, Named] = {
    "gaussian": Named(lambda v, p, precision: (precision * (v - p) ** 2 - sp.log(precision)) / 2, {"precision": 1.0}),
    "laplace": Named(lambda v, p, b: magnitude(v - p) / b, {"b": 1.0}),
    "huber": Named(_huber, {"delta": 1.0}),
    "student-t": Named(
        lambda v, p, nu, sigma: (nu + 1) / 2 * log1p((v - p) ** 2 / (nu * sigma**2)), {"nu": 3.0, "sigma": 1.0}
    ),
    "von-mises": Named(lambda v, p, kappa: -kappa * sp.cos(v - p), {"kappa": 1.0}),
    "bernoulli": Named(
        lambda v, p: softplus(p) - v * p, {}, lambda v: v * sp.log(v) + (1 - v) * sp.log(1 - v), sigmoid
    ),
    "categorical": Named(lambda v, p: -v * logsoftmax(p), {}, lambda v: v * sp.log(v) - v, softmax),
    "poisson": Named(lambda v, p: sp.exp(p) - v * p, {}, lambda v: v * sp.log(v) - v, sp.exp),
}
"""All energies by name. Predictions are logits (bernoulli; categorical, over the last dimension) or log-rates."""


@dataclass(frozen=True)
class LearnedPrecision:
    """A precision Π that learns where inference has ended, under the prior Π ~ Gamma(shape, rate).

    log Π ← log Π + step · (shape + ½ − Π (rate + ½⟨ε²⟩)), ⟨⟩ the mean over a batch; single: over all elements, too.
    """

    shape: float = 0.0
    rate: float = 0.0
    step: float = 0.1
    single: bool = False

    def __str__(self) -> str:
        return f"learned:{self.shape:g},{self.rate:g},{self.step:g}"


def learned_precision(
    shape: float = 0.0, rate: float = 0.0, *, step: float = 0.1, each: str = "element"
) -> LearnedPrecision:
    """A precision that learns beside the parameters, for `precision=`.

    shape, rate: of its prior, Gamma(shape, rate), which weighs as much as 2·shape samples do beside the mean over a
    batch; it begins at shape / rate and ends at Π = (shape + ½) / (rate + ½⟨ε²⟩), the maximum of the posterior in
    log Π. Without a prior (0 and 0) that is 1 / ⟨ε²⟩, which is for outputs: where a value is free, F has no minimum.
    step: how fast log Π follows, once for each training step. each: "element" of a sample, or "vertex".
    Raises CompileError for other numbers and words.
    """
    for name, number, least in (("shape", shape, 0.0), ("rate", rate, 0.0), ("step", step, None)):
        if not _finite(number) or number < 0 or (least is None and number == 0):
            what = f"{name} of a learned precision is {printable(repr(number))}"
            raise CompileError(what, hint="above 0" if least is None else "0 or more")
    if bool(shape) != bool(rate):
        what = f"a learned precision has the prior Gamma({shape:g}, {rate:g})"
        raise CompileError(what, hint="shape and rate are both above 0, or both 0 for no prior")
    if each not in ("element", "vertex"):
        raise CompileError(f"each of a learned precision is {printable(repr(each))}", hint='"element" or "vertex"')
    return LearnedPrecision(float(shape), float(rate), float(step), each == "vertex")


def energy(name: str | sp.Expr, *, entropy: bool = False, rest: sp.Expr | None = None, **parameters: float) -> Energy:
    """An energy by its name, or a sympy expression of your own over the symbols v, vhat and those of `parameters`.

    name: "gaussian" (precision), "laplace" (b), "huber" (delta), "student-t" (nu, sigma), "von-mises" (kappa),
    "bernoulli", "categorical", "poisson", or an expression, which is −log p of one element.
    entropy: add v·log v terms to bernoulli, categorical or poisson; without, they fall for ever along a free value.
    rest: of an expression, where it is least in v, over vhat and parameters; by default vhat.
    Raises CompileError for names, parameters and functions that there are not.
    """
    if isinstance(name, sp.Expr):
        if entropy:
            raise CompileError("entropy belongs to bernoulli, categorical and poisson; add it to your expression")
        return _own(name, rest, parameters)
    if name not in ENERGIES:
        hint = f"one of {', '.join(ENERGIES)}, or a sympy expression over v and vhat"
        raise CompileError(f"unknown energy {printable(repr(name))}", hint=hint)
    named = ENERGIES[name]
    if rest is not None:
        raise CompileError(f"the energy {name} has its own rest", hint="rest goes with an expression of your own")
    if unknown := sorted(set(parameters) - set(named.parameters)):
        hint = f"its parameters: {', '.join(named.parameters) or 'none'}"
        raise CompileError(f"the energy {name} has no parameter {unknown[0]}", hint=hint)
    settings = {**named.parameters, **parameters}
    for parameter, number in settings.items():
        if not _finite(number) or not number > 0:
            raise CompileError(f"{parameter} of the energy {name} is {printable(repr(number))}", hint="above 0")
    symbols = {k: sp.Symbol(k, positive=True) for k in settings}
    density, least = named.density(value, prediction, **symbols), prediction
    if entropy:
        if named.entropy is None or named.rest is None:
            raise CompileError(f"the energy {name} takes no entropy", hint="it has a least value as it is")
        density, least = density + named.entropy(value), named.rest(prediction)
    return derived(name, density, least, {symbols[k]: x for k, x in settings.items()})


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def _own(density: sp.Expr, rest: sp.Expr | None, parameters: Mapping[str, float]) -> Energy:
    """The energy of a user's expression."""
    for name, number in parameters.items():
        if not _finite(number):
            raise CompileError(f"{name} of an energy is {printable(repr(number))}", hint="a finite number")
    symbols: dict[sp.Symbol, sp.Expr] = {}
    known = {"v": value, "vhat": prediction, **{k: sp.Symbol(k, real=True) for k in parameters}}
    for s in density.free_symbols | (rest.free_symbols if rest is not None else set()):
        if s.name not in known:
            raise CompileError(f"the energy {printable(str(density))} reads {s.name}", hint=f"give {s.name}=<number>")
        symbols[s] = known[s.name]
    least = prediction if rest is None else stable(rest.xreplace(symbols))
    numbers = {known[k]: x for k, x in parameters.items()}
    return derived(printable(str(density)), stable(density.xreplace(symbols)), least, numbers)


def derived(name: str, density: sp.Expr, rest: sp.Expr, numbers: Mapping[sp.Symbol, float]) -> Energy:
    """An energy with its derivatives as equations. Raises CompileError for what equations do not have."""
    alone = _of_error(density)
    if alone is None:
        send, hold = -_slope(density, prediction), _slope(density, value)
    else:
        density, send = alone, _slope(alone, error)
        hold = send
    settled = {s: _exact(x) for s, x in numbers.items()}
    try:
        texts = [_equation(e.xreplace(settled)) for e in (density, send, hold, rest)]
    except ValueError as e:
        hint = f"functions of an energy: {', '.join(ELEMENTWISE)}, Max, Min, and Piecewise on single comparisons"
        raise CompileError(f"the energy {name} {e}", hint=hint) from None
    return Energy(name, texts[0], texts[1], texts[2], texts[3], tuple((s.name, float(x)) for s, x in numbers.items()))


def _equation(e: sp.Expr) -> str:
    """`e` as an equation; one that no slot takes part in has the value's shape nevertheless."""
    text = str(_Printer().doprint(e))
    return text if e.free_symbols else f"zero + {text}"


def _exact(number: float) -> sp.Expr:
    return sp.Integer(int(number)) if float(number).is_integer() else sp.Float(number)


def _of_error(density: sp.Expr) -> sp.Expr | None:
    """`density` as a function of v − v̂; None where it is none."""
    shifted = density.subs(value, prediction + error)
    for found in (shifted, sp.expand(shifted)):
        if prediction not in found.free_symbols:
            return found
    return None


def _slope(density: sp.Expr, by: sp.Symbol) -> sp.Expr:
    """The derivative of Σ E by one element; what a row function takes from all elements of its row comes back to each.

    The adjoint of u = logsoftmax(a) is g − softmax(a)·total(g), g = ∂E/∂u.
    """
    rows = sorted(density.atoms(logsoftmax), key=str)
    stands = {r: sp.Dummy(f"row{i}", real=True) for i, r in enumerate(rows)}
    plain = density.xreplace(stands)
    slope = sp.diff(plain, by)
    for row, stand in stands.items():
        inner = row.args[0]
        g = sp.diff(plain, stand)
        slope += (g - softmax(inner) * total(g)) * sp.diff(inner, by)
    return slope.xreplace({stand: row for row, stand in stands.items()})


_NAMES = {"magnitude": "abs", "sgn": "sign"} | {n: n for n in (*ELEMENTWISE, "softmax", "logsoftmax", "total")}


class _Printer(NumberPrinter):
    """Prints an expression in the language of equations. Raises ValueError for what that does not have."""

    def _print_Function(self, e: sp.Function) -> str:
        if isinstance(e, step):
            sign = f"sign({self._print(e.args[0])})"
            return f"(({sign} + abs({sign})) / 2)"
        if e.func.__name__ == "relu":
            inner = self._print(e.args[0])
            return f"(({inner} + abs({inner})) / 2)"
        if e.func.__name__ not in _NAMES:
            raise ValueError(f"reads {e.func.__name__}, which equations do not have")
        return f"{_NAMES[e.func.__name__]}({', '.join(map(self._print, e.args))})"

    _print_log = _print_sin = _print_cos = _print_Function

    def _print_Relational(self, e: sp.Rel) -> str:
        if e.rel_op not in ("<", "<=", ">", ">="):
            raise ValueError(f"compares by {e.rel_op}")
        return f"{self._print(e.lhs)} {e.rel_op} {self._print(e.rhs)}"

    def _print_Piecewise(self, e: sp.Piecewise) -> str:
        *first, (last, always) = e.args
        if always != sp.true or not all(isinstance(c, sp.Rel) for _, c in first):
            raise ValueError("has pieces that are not told apart by single comparisons")
        text = self._print(last)
        for piece, condition in reversed(first):
            text = f"where({self._print(condition)}, {self._print(piece)}, {text})"
        return str(text)

    def _print(self, expr: object, **kwargs: object) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not expr.is_Rational:
            return repr(float(expr))
        return str(super()._print(expr, **kwargs))

    def emptyPrinter(self, expr: object) -> str:
        raise ValueError(f"has {type(expr).__name__}, which equations do not have")
