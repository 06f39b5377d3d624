"""Special functions, each one expression in stable atoms."""

from __future__ import annotations

import sympy as sp
import torch

from pccompile.ir import Node
from pccompile.ops.elementwise import elementwise
from pccompile.ops.expressions import (
    digamma,
    erf,
    erfc,
    erfcx,
    erfinv,
    i0,
    i0e,
    i1,
    i1e,
    lgamma,
    log1p,
    log_ndtr,
    ndtri,
    out,
    sign,
    sinc,
    x,
    xlog1py,
    xlogy,
    y,
)
from pccompile.ops.pointwise import POSITIVE, within
from pccompile.ops.registry import Sample, normal

INSIDE = within(0.1, 0.9)


def _positive() -> torch.Tensor:
    tensor: torch.Tensor = POSITIVE[0]()[0]
    return tensor


elementwise("aten.erf.default", erf(x))
elementwise("aten.erfc.default", erfc(x))
elementwise(
    "aten.erfinv.default", erfinv(x), slopes={x: sp.sqrt(sp.pi) / 2 * sp.exp(out**2)}, samples=within(-0.9, 0.9)
)
elementwise("aten.special_erfcx.default", erfcx(x), slopes={x: 2 * x * out - 2 / sp.sqrt(sp.pi)})
elementwise("aten.special_log_ndtr.default", log_ndtr(x), equation="log Φ(x)")
elementwise("aten.special_ndtri.default", ndtri(x), slopes={x: sp.sqrt(2 * sp.pi) * sp.exp(out**2 / 2)}, samples=INSIDE)
elementwise(
    "aten.special_entr.default", -xlogy(x, x), slopes={x: -1 - sp.log(x)}, samples=POSITIVE, equation="−x log x"
)


def _logit(n: Node) -> sp.Expr:
    inside = sp.log(x) - log1p(-x)
    eps = sp.Symbol("eps", real=True)
    edge = sp.log(eps) - sp.log(1 - eps)
    return inside if n["eps"] is None else sp.Piecewise((edge, x < eps), (-edge, x > 1 - eps), (inside, True))


elementwise(
    "aten.logit.default",
    _logit,
    kernel=lambda b, n, e: b("aten.logit_backward.default", e, n["self"], n["eps"]),
    samples=(*INSIDE, lambda: (*INSIDE[0](), 0.3)),
    equation="log(x / (1 − x))",
)
elementwise("aten.lgamma.default", lgamma(x), samples=POSITIVE)
elementwise("aten.digamma.default", digamma(x), samples=POSITIVE)
elementwise("aten.polygamma.default", sp.polygamma(sp.Symbol("n", real=True), x), equation="polygamma(x)",
            samples=(lambda: (1, _positive()), lambda: (2, _positive())))  # fmt: skip
elementwise("aten.i0.default", i0(x))
elementwise("aten.special_i0e.default", i0e(x), slopes={x: i1e(x) - sign(x) * out})
elementwise("aten.special_i1.default", i1(x))
elementwise("aten.special_i1e.default", i1e(x))
elementwise("aten.sinc.default", sinc(x))


def _log_zero(pole: int) -> sp.Expr:
    """The slope of x · log(y − pole) by x, nothing where 0 · log 0 is taken for 0."""
    log = sp.log(y) if pole == 0 else log1p(y)
    return sp.Piecewise((0, sp.Eq(x, 0) & (y <= pole)), (log, True))


def _pair(first: str, second: str) -> Sample:
    return lambda: (normal(4, 3) if first == "Tensor" else 1.5, _positive() if second == "Tensor" else 2.5)


for overload, first, second in (
    ("Tensor default", "Tensor", "Tensor"),
    ("Scalar_Self self_scalar", "number", "Tensor"),
    ("Scalar_Other other_scalar", "Tensor", "number"),
):
    of_log, of_log1p = overload.split()
    samples = (_pair(first, second),)
    elementwise(
        f"aten.xlogy.{of_log}", xlogy(x, y), slopes={x: _log_zero(0), y: x / y}, samples=samples, equation="x log y"
    )
    elementwise(
        f"aten.special_xlog1py.{of_log1p}",
        xlog1py(x, y),
        slopes={x: _log_zero(-1), y: x / (1 + y)},
        samples=samples,
        equation="x log(1 + y)",
    )
