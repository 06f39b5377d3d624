r"""Operations in LaTeX: what one computes, and what it sends back to an argument.

Everything is printed from the node and its definition. `W x` is torch's `x @ W.t()` for one sample; sums over the batch
are left out. What has no form of its own is its name: `\operatorname{name}(…)`, and `J_{name, argument}^\top e`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter

from pccompile.ir import Node, Ref, refs
from pccompile.ops.elementwise import arguments, is_real, number
from pccompile.ops.equations import short
from pccompile.ops.expressions import out
from pccompile.ops.registry import definition

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
LONGEST = 220
"""So many characters of a formula; a longer one is written by its operation's name."""
MOST_ARGUMENTS = 4


@dataclass(frozen=True)
class Tex:
    """A piece of LaTeX. level: 0 stands alone, 1 is a product, 2 one by elements, 3 a sum. of: what it transposes."""

    text: str
    level: int = 0
    of: Tex | None = None

    def within(self, level: int) -> str:
        """The text, in brackets where it binds less than `level`."""
        return rf"\left({self.text}\right)" if self.level > level else self.text


Operand = Callable[[Ref], Tex]


def plain(text: str) -> str:
    r"""Any text, for use inside `\textsf{…}`: nothing in it is a command."""
    return "".join(SPECIAL.get(c, c) for c in text if c.isprintable())


def named(letter: str, name: str) -> str:
    """A letter with a name below it."""
    return rf"{letter}_{{\textsf{{{plain(name)}}}}}"


def operator(name: str) -> str:
    """A function's name, upright."""
    return {"sigmoid": r"\sigma", "tanh": r"\tanh"}.get(name) or rf"\operatorname{{{plain(name)}}}"


def minus(e: Tex) -> Tex:
    """The negative."""
    inner = e.text.startswith("-") or e.level > 2
    return Tex(rf"-\left({e.text}\right)" if inner else f"-{e.text}", 3)


def total(terms: list[Tex]) -> Tex:
    """The sum of all terms."""
    if len(terms) < 2:
        return terms[0] if terms else Tex("0")
    text = terms[0].text
    for t in terms[1:]:
        text += f" {t.text}" if t.text.startswith("-") and t.level < 3 else f" + {t.within(2)}"
    return Tex(text, 3)


def times(*factors: Tex, sign: str = r"\,") -> Tex:
    """A product, the sign between its factors."""
    level = 2 if sign == r"\odot" else 1
    return Tex(f" {sign} ".join(f.within(level) for f in factors), level)


def transposed(x: Tex) -> Tex:
    """The transpose."""
    return x.of or Tex(rf"{x.within(0)}^{{\top}}", of=x)


class _Printer(LatexPrinter):
    """sympy's own, with our atoms by name and no brackets around f(x)."""

    def _print_Function(self, e: sp.Function, exp: Any = None) -> str:
        name = type(e).__name__.strip("_")
        inner = ", ".join(self.raw.get(a, self._print(a)) for a in e.args)
        power = f"^{{{exp}}}" if exp is not None else ""
        return rf"{operator(name)}{power}\left({inner}\right)"

    raw: Mapping[Any, str] = {}


def formula(expr: sp.Expr, symbols: Mapping[sp.Symbol, Tex]) -> Tex:
    """A sympy expression, its symbols spelled as `symbols` says."""
    printer = _Printer({"symbol_names": {s: t.within(0) for s, t in symbols.items()}, "fold_short_frac": False})
    printer.raw = {s: t.text for s, t in symbols.items()}
    level = 3 if expr.is_Add or expr.is_Piecewise else 1 if expr.is_Mul else 0
    return Tex(printer.doprint(expr), level)


def computed(n: Node, operand: Operand) -> Tex:
    """What a node computes of its operands."""

    def of(name: str) -> Tex:
        return operand(n.args[name]) if isinstance(n.args.get(name), Ref) else Tex(plain(f"{n.args.get(name):g}"))

    match n.op:
        case "aten.linear.default" | "aten.convolution.default":
            join = r"\," if n.op == "aten.linear.default" else r"\ast"
            product = times(of("weight"), of("input"), sign=join)
            return total([product, of("bias")]) if isinstance(n.args.get("bias"), Ref) else product
        case op if definition(op).product:
            return times(*map(of, definition(op).product))
        case op if definition(op).transposes:
            return transposed(of("self"))
        case "aten.mul.Tensor" if isinstance(n["self"], Ref) and isinstance(n["other"], Ref):
            return times(of("self"), of("other"), sign=r"\odot")
        case "aten.add.Tensor" if n["alpha"] == 1:
            return total([of("self"), of("other")])
        case "aten.sub.Tensor" if n["alpha"] == 1:
            return total([of("self"), minus(of("other"))])
    return _by_formula(n, operand) or _by_name(n, operand)


def _by_formula(n: Node, operand: Operand) -> Tex | None:
    """An elementwise operation as its formula, where that is no longer than a reader wants and has no cases."""
    known = definition(n.op)
    if known.formula is None or known.activation:
        return None
    expr, symbols = _numbered(n, known.formula(n))
    if expr.has(sp.Piecewise):
        return None
    text = formula(expr, {s: operand(n[a]) for s, a in symbols.items()})
    return text if len(text.text) <= LONGEST else None


def _by_name(n: Node, operand: Operand) -> Tex:
    operands = list(dict.fromkeys(refs(n.args.values())))
    shown = [operand(r).text for r in operands[:MOST_ARGUMENTS]] + [r"\dots"] * (len(operands) > MOST_ARGUMENTS)
    return Tex(rf"{operator(short(n.op))}\left({', '.join(shown)}\right)")


def _numbered(n: Node, expr: sp.Expr) -> tuple[sp.Expr, dict[sp.Symbol, str]]:
    """An expression with a node's numbers in it, and the symbols that are left with their arguments."""
    pairs = arguments(n.op)
    numbers = {s: number(n[a]) for s, a in pairs if isinstance(n[a], bool | int | float)}
    return sp.sympify(expr).xreplace(numbers), {s: a for s, a in pairs if isinstance(n[a], Ref)}


def adjoint(n: Node, argument: str, e: Tex, operand: Operand, dropped: bool = False) -> Tex:
    """What a node sends back to `argument` of an error `e` of its result."""
    if dropped or n.op == "getitem":
        return e
    special = _multilinear(n, argument, e, operand)
    if special is not None:
        return special
    known = definition(n.op)
    if known.formula is not None and is_real(n, arguments(n.op), known.formula, {}):
        return _times_slope(n, argument, e, operand)
    if known.family == "linear" and known.wiring:
        return transposed(e) if known.transposes else e
    return times(Tex(rf"J_{{\textsf{{{plain(short(n.op))}}},\,\textsf{{{plain(argument)}}}}}^{{\top}}"), e)


def _multilinear(n: Node, argument: str, e: Tex, operand: Operand) -> Tex | None:
    """The adjoint of a product, a convolution or a softmax."""
    match n.op, argument:
        case "aten.linear.default", "input":
            return times(transposed(operand(n["weight"])), e)
        case "aten.linear.default", "weight":
            return times(e, transposed(operand(n["input"])))
        case "aten.convolution.default", "input":
            return times(operand(n["weight"]), e, sign=r"\star")
        case "aten.convolution.default", "weight":
            return times(e, operand(n["input"]), sign=r"\star")
        case "aten.linear.default", "bias":
            return e
        case "aten.convolution.default", "bias":
            return Tex(rf"\textstyle\sum {e.within(1)}", 1)
        case op, first if definition(op).product[:1] == (first,):
            return times(e, transposed(operand(n[definition(op).product[1]])))
        case op, second if definition(op).product[1:] == (second,):
            return times(transposed(operand(n[definition(op).product[0]])), e)
        case "aten._softmax.default", "self":
            result = operand(Ref(n.name))
            inner = Tex(rf"{e.within(1)} - \langle {result.text}, {e.text}\rangle", 3)
            return times(result, inner, sign=r"\odot")
    return None


def _times_slope(n: Node, argument: str, e: Tex, operand: Operand) -> Tex:
    """An elementwise operation's slope times an error."""
    formula_of = definition(n.op).formula
    assert formula_of is not None
    symbol = next((s for s, a in arguments(n.op) if a == argument), None)
    slope, symbols = _numbered(n, sp.diff(formula_of(n), symbol))
    if slope in (1, -1):
        return e if slope == 1 else minus(e)
    if slope.is_number and slope.is_extended_real:
        return times(Tex(f"{float(slope):.6g}"), e)
    spelled = {s: operand(n[a]) for s, a in symbols.items()} | {out: operand(Ref(n.name))}
    text = formula(slope, spelled)
    steps = slope.has(sp.Piecewise) or any(type(f).__name__.startswith("step") for f in slope.atoms(sp.Function))
    if steps or len(text.text) > LONGEST:
        operands = [spelled[s].text for s in symbols]
        prime = "'" if len(operands) == 1 else rf"_{{,\textsf{{{plain(argument)}}}}}"
        text = Tex(rf"{operator(short(n.op))}{prime}\left({', '.join(operands)}\right)")
    return times(text, e, sign=r"\odot")
