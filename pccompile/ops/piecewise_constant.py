"""Bounds, comparisons of two values, and functions that are flat almost everywhere, each one expression."""

from __future__ import annotations

import sympy as sp
import torch

from pccompile.ir import Node
from pccompile.ops.elementwise import elementwise
from pccompile.ops.expressions import ceil, floor, heaviside, rounded, sign, trunc, x, y
from pccompile.ops.pointwise import pairs
from pccompile.ops.registry import Sample, normal

low, high = sp.symbols("min max", real=True)
HALF = sp.Rational(1, 2)


def _tied() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 3.0, 2.0]).double()


def _larger(first: sp.Symbol, second: sp.Symbol) -> sp.Expr:
    """The slope of max(first, second) by `first`: ties share it."""
    return sp.Piecewise((1, first > second), (HALF, sp.Eq(first, second)), (0, True))


elementwise("aten.maximum.default", sp.Piecewise((x, x >= y), (y, True)), slopes={x: _larger(x, y), y: _larger(y, x)},
            samples=(*pairs(), _tied), equation="max(x, y)")  # fmt: skip
elementwise("aten.minimum.default", sp.Piecewise((x, x <= y), (y, True)), slopes={x: _larger(y, x), y: _larger(x, y)},
            samples=(*pairs(), _tied), equation="min(x, y)")  # fmt: skip
elementwise("aten.fmax.default", sp.Piecewise((x, x >= y), (y, True)), samples=(*pairs(), _tied), equation="max(x, y)")
elementwise("aten.fmin.default", sp.Piecewise((x, x <= y), (y, True)), samples=(*pairs(), _tied), equation="min(x, y)")


def _bounded(n: Node, lower: sp.Symbol) -> sp.Expr:
    """`x` within those bounds that are given; the upper one wins where they cross."""
    least, most = n.args.get("min"), n.args.get("max")
    branches = [] if most is None else [(high, (x > high) | (high < lower) if least is not None else x > high)]
    branches += [] if least is None else [(lower, x < lower)]
    return sp.Piecewise(*branches, (x, True))


def _bounds(*bounds: object) -> Sample:
    return lambda: (normal(4, 3), *bounds)


elementwise("aten.clamp.default", lambda n: _bounded(n, low), equation="clamp(x)",
            samples=(_bounds(-0.5, 0.7), _bounds(None, 0.3), _bounds(-0.2)))  # fmt: skip
elementwise(
    "aten.clamp_min.default", sp.Piecewise((low, x < low), (x, True)), samples=(_bounds(0.2),), equation="max(x, min)"
)
elementwise(
    "aten.clamp_max.default", sp.Piecewise((high, x > high), (x, True)), samples=(_bounds(0.2),), equation="min(x, max)"
)
elementwise(
    "aten.clamp.Tensor",
    lambda n: _bounded(n, y),
    equation="clamp(x)",
    samples=(
        lambda: (normal(4, 3), normal(3) - 1, normal(4, 1) + 1),
        lambda: (normal(4, 3), None, normal(4, 1)),
        lambda: (normal(4, 3), normal(3)),
    ),
)
elementwise("aten.clamp_min.Tensor", sp.Piecewise((y, x < y), (x, True)), samples=pairs(), equation="max(x, y)")
elementwise("aten.clamp_max.Tensor", sp.Piecewise((y, x > y), (x, True)), samples=pairs(), equation="min(x, y)")

for name, expr in (
    ("sign", sign(x)),
    ("sgn", sign(x)),
    ("floor", floor(x)),
    ("ceil", ceil(x)),
    ("trunc", trunc(x)),
    ("round", rounded(x)),
):
    elementwise(f"aten.{name}.default", expr, flat=True, rounds=name not in ("sign", "sgn"))
decimals = sp.Symbol("decimals", real=True)
elementwise("aten.round.decimals", rounded(x * 10**decimals) / 10**decimals, slopes={x: sp.Integer(0)}, flat=True,
            samples=(lambda: (normal(4, 3), {"decimals": 2}),))  # fmt: skip
elementwise("aten.heaviside.default", heaviside(x, y), samples=pairs(), flat=True)
elementwise("aten.frac.default", x - trunc(x), equation="x − trunc(x)")
elementwise(
    "aten.nan_to_num.default",
    x,
    kernel=lambda b, n, e: b.mul(e, b("aten.isfinite.default", n["self"])),
    samples=(lambda: (torch.tensor([1.0, torch.nan, torch.inf, -2.0]).double(),),),
)
