"""Arithmetic and the elementary functions, each one expression."""

from __future__ import annotations

import math
from typing import Any

import sympy as sp
import torch

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.elementwise import Formula, elementwise, times_slope
from pccompile.ops.expressions import (
    atan2,
    copysign,
    divided_down,
    divided_to_zero,
    expm1,
    hypot,
    log1p,
    logaddexp,
    magnitude,
    out,
    sigmoid,
    x,
    y,
)
from pccompile.ops.registry import Sample, normal
from pccompile.ops.trace import traced_rule


def _scaled(symbol: str, function: str) -> Any:
    """Spells `self ± alpha other`: where alpha is not 1, as one kernel."""
    return lambda a: f"self {symbol} other" if a["alpha"] == 1 else f"{function}(self, other, alpha=alpha)"


def pairs(*more: Any) -> tuple[Sample, ...]:
    """Two tensors of one shape, and a broadcast pair each way."""

    def pair(left: tuple[int, ...], right: tuple[int, ...]) -> Sample:
        return lambda: (normal(*left), normal(*right), *more)

    return pair((4, 3), (4, 3)), pair((4, 3), (3,)), pair((4, 1), (2, 1, 3))


def number(value: float, *more: Any) -> tuple[Sample, ...]:
    """A tensor and a number."""
    return (lambda: (normal(4, 3), value, *more),)


def within(low: float, high: float) -> tuple[Sample, ...]:
    """A tensor with entries between `low` and `high`."""
    return (lambda: (torch.rand(4, 3, dtype=torch.float64) * (high - low) + low,),)


POSITIVE = within(0.1, 1.1)
alpha, value, weight = sp.symbols("alpha value weight", real=True)


def _over(*factors: Any) -> Any:
    """The message err / (argument · factors)."""

    def kernel(b: Builder, n: Node, e: Ref) -> Ref:
        below: Any = n["other"] if "other" in n.args else n["self"]
        for f in factors:
            below = b.mul(below, f)
        return b("aten.div.Tensor", e, below)

    return kernel


def _divided(which: str) -> Any:
    """The message of x / y; none where the quotient is rounded, since it is flat then."""

    def kernel(b: Builder, n: Node, e: Ref) -> Ref | None:
        if n["rounding_mode"] is not None:
            return None
        return (
            _over()(b, n, e)
            if which == "self"
            else b.mul(e, b("pcc.map", Formula(-out / y), ("out", "y"), (Ref(n.name), n["other"])))
        )

    return kernel


def _modes(pair: Sample) -> tuple[Sample, ...]:
    return tuple(lambda m=m: (*pair(), {"rounding_mode": m}) for m in (None, "floor", "trunc"))


QUOTIENTS = {None: x / y, "floor": divided_down(x, y), "trunc": divided_to_zero(x, y)}
ONE = sp.Integer(1)

for which, samples in (("Tensor", pairs()), ("Scalar", number(1.5))):
    other = samples if which == "Scalar" else samples + number(1.5)  # torch takes numbers for these
    doubled = number(1.5, 2) if which == "Scalar" else pairs({"alpha": 2})
    elementwise(
        f"aten.add.{which}",
        x + alpha * y,
        spell=_scaled("+", "torch.add"),
        samples=other + doubled,
        equation="x + y",
        in_place="add_",
    )
    elementwise(
        f"aten.sub.{which}",
        x - alpha * y,
        spell=_scaled("-", "torch.sub"),
        samples=other + doubled,
        equation="x − y",
        in_place="sub_",
    )
    elementwise(
        f"aten.rsub.{which}",
        y - alpha * x,
        spell=lambda a: "other - self" if a["alpha"] == 1 else "other - alpha * self",
        samples=samples + (doubled if which == "Scalar" else ()),
        equation="y − x",
    )
    elementwise(f"aten.mul.{which}", x * y, spell="self * other", samples=other, in_place="mul_")
    elementwise(
        f"aten.div.{which}",
        x / y,
        slopes={x: 1 / y, y: -out / y},
        kernel={x: _over()},
        spell="self / other",
        samples=other,
        equation="x / y",
    )
    elementwise(
        f"aten.div.{which}_mode",
        lambda n: QUOTIENTS[n["rounding_mode"]],
        kernel={x: _divided("self"), y: _divided("other")},
        samples=_modes(samples[0]),
        equation="x / y",
    )
    for name, quotient in (("remainder", QUOTIENTS["floor"]), ("fmod", QUOTIENTS["trunc"])):
        elementwise(
            f"aten.{name}.{which}",
            x - y * quotient,
            slopes={x: ONE, y: -quotient},
            samples=samples,
            equation=f"{name}(x, y)",
        )
    elementwise(f"aten.copysign.{which}", copysign(x, y), samples=samples, equation="|x| sign(y)")
elementwise("aten.addcmul.default", x + value * y * sp.Symbol("tensor2", real=True),
            samples=(lambda: (normal(4, 3), normal(3), normal(4, 1), {"value": 0.5}),))  # fmt: skip
elementwise("aten.addcdiv.default", x + value * y / sp.Symbol("tensor2", real=True),
            samples=(lambda: (normal(4, 3), normal(3), normal(4, 1), {"value": 0.5}),))  # fmt: skip
elementwise(
    "aten.lerp.Scalar",
    x + weight * (y - x),
    slopes={x: 1 - weight, y: weight},
    samples=(lambda: (normal(4, 3), normal(3), 0.3),),
    in_place="lerp_",
)
elementwise(
    "aten.lerp.Tensor",
    x + weight * (y - x),
    slopes={x: 1 - weight, y: weight, weight: y - x},
    samples=(lambda: (normal(4, 3), normal(3), normal(4, 1)),),
)
elementwise(
    "aten.floor_divide.default",
    divided_down(x, y),
    spell="self // other",
    samples=pairs() + number(1.5),
    equation="⌊x / y⌋",
)
elementwise("aten.neg.default", -x, spell="-self")
elementwise("aten.reciprocal.default", 1 / x, slopes={x: -out * out}, samples=POSITIVE)
elementwise("aten.square.default", x**2, slopes={x: 2 * x})
elementwise("aten.sqrt.default", sp.sqrt(x), slopes={x: 1 / (2 * out)}, samples=POSITIVE, equation="√x")
elementwise("aten.rsqrt.default", 1 / sp.sqrt(x), slopes={x: -out * out * out / 2}, samples=POSITIVE)
elementwise("aten.abs.default", magnitude(x), equation="|x|")
elementwise("aten.deg2rad.default", x * sp.pi / 180)
elementwise("aten.rad2deg.default", x * 180 / sp.pi)
elementwise("aten.hypot.default", hypot(x, y), slopes={x: x / out, y: y / out}, samples=pairs())
AT_ORIGIN = sp.Eq(x**2 + y**2, 0)
elementwise(
    "aten.atan2.default",
    atan2(x, y),
    slopes={
        x: sp.Piecewise((0, AT_ORIGIN), (y / (x**2 + y**2), True)),
        y: sp.Piecewise((0, AT_ORIGIN), (-x / (x**2 + y**2), True)),
    },
    samples=pairs(),
)


def _power_of_number(b: Builder, n: Node, e: Ref) -> Any:
    base: Any = n["self"]
    if base <= 0:
        return traced_rule(b, n, e)["exponent"]
    return times_slope(b, e, out * sp.Float(math.log(base)), {out: Ref(n.name)})


elementwise(
    "aten.pow.Tensor_Scalar",
    x**y,
    slopes={x: y * x ** (y - 1)},
    spell="self ** exponent",
    samples=(*number(3), *number(2), *number(0), *(lambda p=p: (*POSITIVE[0](), p) for p in (2.5, -1, 0.5))),
)
elementwise(
    "aten.pow.Scalar",
    x**y,
    kernel={y: _power_of_number},
    samples=(lambda: (2, normal(4, 3)), lambda: (0, *POSITIVE[0]())),
)
elementwise(
    "aten.pow.Tensor_Tensor",
    x**y,
    slopes={
        x: sp.Piecewise((0, sp.Eq(y, 0)), (y * x ** (y - 1), True)),
        y: sp.Piecewise((0, sp.Eq(x, 0) & (y >= 0)), (out * sp.log(x), True)),
    },
    samples=(
        lambda: (*POSITIVE[0](), normal(3)),
        lambda: (torch.tensor([0.0, 2.0]).double(), torch.tensor([2.0, 0.0]).double()),
    ),
)
elementwise("aten.exp.default", sp.exp(x), slopes={x: out}, in_place="exp_", from_result=True)
elementwise("aten.exp2.default", 2**x, slopes={x: out * sp.log(2)})
elementwise("aten.expm1.default", expm1(x), slopes={x: out + 1})
elementwise("aten.log.default", sp.log(x), kernel=_over(), samples=POSITIVE)
elementwise("aten.log2.default", sp.log(x) / sp.log(2), kernel=_over(math.log(2)), samples=POSITIVE, equation="log₂(x)")
elementwise(
    "aten.log10.default", sp.log(x) / sp.log(10), kernel=_over(math.log(10)), samples=POSITIVE, equation="log₁₀(x)"
)
elementwise("aten.log1p.default", log1p(x), samples=POSITIVE)
elementwise("aten.logaddexp.default", logaddexp(x, y), samples=pairs())
elementwise(
    "aten.logaddexp2.default",
    logaddexp(x * sp.log(2), y * sp.log(2)) / sp.log(2),
    slopes={x: sigmoid((x - y) * sp.log(2)), y: sigmoid((y - x) * sp.log(2))},
    samples=pairs(),
    equation="log₂(2ˣ + 2ʸ)",
)
elementwise("aten.sin.default", sp.sin(x))
elementwise("aten.cos.default", sp.cos(x))
elementwise("aten.tan.default", sp.tan(x), slopes={x: 1 + out * out})
elementwise("aten.asin.default", sp.asin(x), samples=within(-0.9, 0.9))
elementwise("aten.acos.default", sp.acos(x), samples=within(-0.9, 0.9))
elementwise("aten.atan.default", sp.atan(x))
elementwise("aten.sinh.default", sp.sinh(x))
elementwise("aten.cosh.default", sp.cosh(x))
elementwise("aten.asinh.default", sp.asinh(x))
elementwise("aten.acosh.default", sp.acosh(x), slopes={x: 1 / sp.sqrt(x**2 - 1)}, samples=within(1.1, 3))
elementwise("aten.atanh.default", sp.atanh(x), samples=within(-0.9, 0.9))
