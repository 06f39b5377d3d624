"""The elementwise operations of torch, each one expression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp
import torch

from pccompile.ir import Ref
from pccompile.ops.elementwise import elementwise
from pccompile.ops.expressions import erf, expm1, floor, log1p, magnitude, ndtr, out, relu, sigmoid, sign, softplus, tanh, x, y
from pccompile.ops.registry import Sample


def infix(symbol: str) -> Any:
    """Spells `self ∘ other`."""
    return lambda t, a: f"{t['self']} {symbol} {t['other']}"


def _scaled(symbol: str) -> Any:
    def spell(t: Mapping[str, Any], a: Mapping[str, Any]) -> str:
        return f"{t['self']} {symbol} {t['other']}" if a["alpha"] == 1 else f"{t['self']} {symbol} {t['alpha']} * {t['other']}"

    return spell


def _pairs(*more: Any) -> tuple[Sample, ...]:
    """Two tensors of one shape, and a broadcast pair each way."""

    def pair(left: tuple[int, ...], right: tuple[int, ...]) -> Sample:
        return lambda: (torch.randn(left).double(), torch.randn(right).double(), *more)

    return pair((4, 3), (4, 3)), pair((4, 3), (3,)), pair((4, 1), (2, 1, 3))


def _positive() -> tuple[torch.Tensor]:
    return (torch.rand(4, 3).double() + 0.1,)


alpha, beta, threshold, negative_slope, exponent = sp.symbols("alpha beta threshold negative_slope exponent", real=True)
minimum, maximum = sp.symbols("min max", real=True)
root = sp.sqrt(2 / sp.pi)

for which in ("Tensor", "Scalar"):
    elementwise(f"aten.add.{which}", x + alpha * y, spell=_scaled("+"), samples=_pairs(), equation="x + y")
    elementwise(f"aten.sub.{which}", x - alpha * y, spell=_scaled("-"), samples=_pairs(), equation="x − y")
    elementwise(f"aten.mul.{which}", x * y, spell=infix("*"), samples=_pairs())
    elementwise(
        f"aten.div.{which}", x / y, slopes={x: 1 / y, y: -out / y}, spell=infix("/"), samples=_pairs(), equation="x / y"
    )
elementwise("aten.rsub.Scalar", sp.Symbol("other", real=True) - x, spell=lambda t, a: f"{t['other']} - {t['self']}",
            samples=(lambda: (torch.randn(4, 3).double(), 1.5),))  # fmt: skip
elementwise("aten.neg.default", -x, spell=lambda t, a: f"-{t['self']}")
elementwise("aten.exp.default", sp.exp(x), slopes={x: out})
elementwise("aten.expm1.default", expm1(x), slopes={x: out + 1})
elementwise("aten.log.default", sp.log(x), slopes={x: 1 / x}, samples=(_positive,))
elementwise("aten.log1p.default", log1p(x), samples=(_positive,))
elementwise("aten.sqrt.default", sp.sqrt(x), slopes={x: 1 / (2 * out)}, samples=(_positive,), equation="√x")
elementwise("aten.rsqrt.default", 1 / sp.sqrt(x), slopes={x: -out * out * out / 2}, samples=(_positive,))
elementwise("aten.reciprocal.default", 1 / x, slopes={x: -out * out}, samples=(_positive,))
elementwise("aten.square.default", x**2, slopes={x: 2 * x})
elementwise("aten.abs.default", magnitude(x), equation="|x|")
elementwise("aten.sin.default", sp.sin(x))
elementwise("aten.cos.default", sp.cos(x))
elementwise("aten.tan.default", sp.tan(x), slopes={x: 1 + out * out})
elementwise("aten.atan.default", sp.atan(x))
elementwise("aten.erf.default", erf(x))
elementwise("aten.sign.default", sign(x))
elementwise("aten.floor.default", floor(x))

elementwise("aten.relu.default", relu(x), kernel=lambda b, n, e: b("aten.threshold_backward.default", e, Ref(n.name), 0))
elementwise("aten.tanh.default", tanh(x), slopes={x: 1 - out**2}, kernel=lambda b, n, e: b("aten.tanh_backward.default", e, Ref(n.name)))
elementwise(
    "aten.sigmoid.default",
    sigmoid(x),
    slopes={x: out * (1 - out)},
    kernel=lambda b, n, e: b("aten.sigmoid_backward.default", e, Ref(n.name)),
    equation="σ(x)",
)
elementwise(
    "aten.silu.default", x * sigmoid(x), kernel=lambda b, n, e: b("aten.silu_backward.default", e, n["self"]), equation="x σ(x)"
)
elementwise(
    "aten.mish.default", x * tanh(softplus(x)), kernel=lambda b, n, e: b("aten.mish_backward.default", e, n["self"])
)
elementwise(
    "aten.leaky_relu.default",
    sp.Piecewise((x, x > 0), (negative_slope * x, True)),
    kernel=lambda b, n, e: b("aten.leaky_relu_backward.default", e, n["self"], n["negative_slope"], False),
)
elementwise(
    "aten.hardtanh.default",
    sp.Piecewise((sp.Symbol("min_val", real=True), x <= sp.Symbol("min_val", real=True)),
                 (sp.Symbol("max_val", real=True), x >= sp.Symbol("max_val", real=True)), (x, True)),
    kernel=lambda b, n, e: b("aten.hardtanh_backward.default", e, n["self"], n["min_val"], n["max_val"]),
)  # fmt: skip
elementwise(
    "aten.hardswish.default",
    sp.Piecewise((0, x <= -3), (x, x >= 3), (x * (x + 3) / 6, True)),
    kernel=lambda b, n, e: b("aten.hardswish_backward.default", e, n["self"]),
)
elementwise(
    "aten.gelu.default",
    lambda n: x * ndtr(x) if n["approximate"] == "none" else x / 2 * (1 + tanh(root * (x + sp.Float("0.044715") * x**3))),
    kernel=lambda b, n, e: b("aten.gelu_backward.default", e, n["self"], approximate=n["approximate"]),
    spell=lambda t, a: f"F.gelu({t['self']})" if a["approximate"] == "none" else f"F.gelu({t['self']}, approximate='tanh')",
    samples=(lambda: (torch.randn(4, 3).double(),), lambda: (torch.randn(4, 3).double(), {"approximate": "tanh"})),
    equation="x Φ(x)",
)
