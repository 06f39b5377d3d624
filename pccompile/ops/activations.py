"""The activation functions of torch.nn, each one expression, with ATen's own kernel for its message."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import sympy as sp

from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.elementwise import Kernel, elementwise
from pccompile.ops.expressions import expm1, ndtr, out, relu, sigmoid, softplus, tanh, x, y
from pccompile.ops.registry import Sample, define, normal, rewrite


def option(name: str) -> sp.Symbol:
    """The symbol of an argument that is a number."""
    return sp.Symbol(name, real=True)


alpha, beta, scale, input_scale = map(option, ("alpha", "beta", "scale", "input_scale"))
threshold, value, slope = map(option, ("threshold", "value", "negative_slope"))
lambd, low, high = map(option, ("lambd", "min_val", "max_val"))
ROOT = sp.sqrt(2 / sp.pi)
activation = functools.partial(elementwise, activation=True)


def _backward(name: str, *options: str) -> Kernel:
    """ATen's kernel of the argument: name_backward(err, self, options)."""
    return lambda b, n, e: b(f"aten.{name}_backward.default", e, n["self"], *(n[o] for o in options))


for name in ("gelu", "silu", "mish", "softplus", "elu"):
    define(f"aten.{name}_backward.default", "traced", costly_slope=True)


def _with(*options: Any) -> tuple[Sample, ...]:
    return (lambda: (normal(4, 3), *options),)


activation(
    "aten.relu.default",
    relu(x),
    kernel=lambda b, n, e: b("aten.threshold_backward.default", e, Ref(n.name), 0),
    in_place="relu_",
    from_result=True,
)
activation(
    "aten.tanh.default",
    tanh(x),
    slopes={x: 1 - out**2},
    kernel=lambda b, n, e: b("aten.tanh_backward.default", e, Ref(n.name)),
    in_place="tanh_",
    from_result=True,
)
activation(
    "aten.sigmoid.default",
    sigmoid(x),
    slopes={x: out * (1 - out)},
    kernel=lambda b, n, e: b("aten.sigmoid_backward.default", e, Ref(n.name)),
    equation="σ(x)",
    in_place="sigmoid_",
    from_result=True,
)
activation("aten.silu.default", x * sigmoid(x), kernel=_backward("silu"), equation="x σ(x)")
activation("aten.mish.default", x * tanh(softplus(x)), kernel=_backward("mish"))
activation(
    "aten.gelu.default",
    lambda n: (
        x * ndtr(x) if n["approximate"] == "none" else x / 2 * (1 + tanh(ROOT * (x + sp.Float("0.044715") * x**3)))
    ),
    kernel=lambda b, n, e: b("aten.gelu_backward.default", e, n["self"], approximate=n["approximate"]),
    spell=lambda a: "F.gelu(self)" if a["approximate"] == "none" else "F.gelu(self, approximate=approximate)",
    samples=_with() + _with({"approximate": "tanh"}),
    equation="x Φ(x)",
)
activation(
    "aten.softplus.default",
    sp.Piecewise((x, x * beta > threshold), (softplus(beta * x) / beta, True)),
    kernel=_backward("softplus", "beta", "threshold"),
    samples=_with() + _with(3, 1.5),
    equation="softplus(x)",
)
activation("aten.log_sigmoid.default", -softplus(-x), spell="F.logsigmoid(self)", equation="log σ(x)")
rewrite(
    "aten.log_sigmoid_forward.default",
    lambda b, n: (b("aten.log_sigmoid.default", n["self"]), b("aten.zeros_like.default", n["self"])),
)

# piecewise: at a kink the slope is the one that the kernel takes
activation(
    "aten.leaky_relu.default",
    sp.Piecewise((x, x > 0), (slope * x, True)),
    kernel=lambda b, n, e: b("aten.leaky_relu_backward.default", e, n["self"], n["negative_slope"], False),
    samples=_with() + _with(0.2),
    equation="leaky_relu(x)",
)


def _prelu(which: int) -> Kernel:
    return lambda b, n, e: b.get(b("aten._prelu_kernel_backward.default", e, n["self"], n["weight"]), which)


activation(
    "aten._prelu_kernel.default",
    sp.Piecewise((x, x > 0), (y * x, True)),
    kernel={x: _prelu(0), y: _prelu(1)},
    samples=(lambda: (normal(4, 3), normal(1, 3)),),
    equation="prelu(x)",
)
activation(
    "aten.elu.default",
    sp.Piecewise((scale * x, x > 0), (scale * alpha * expm1(input_scale * x), True)),
    kernel=lambda b, n, e: b(
        "aten.elu_backward.default", e, n["alpha"], n["scale"], n["input_scale"], False, n["self"]
    ),
    samples=_with() + _with(1.5, 2.0, 0.5),
    equation="elu(x)",
)
activation(
    "aten.celu.default",
    sp.Piecewise((x, x > 0), (alpha * expm1(x / alpha), True)),
    kernel=lambda b, n, e: b("aten.elu_backward.default", e, n["alpha"], 1, 1 / n["alpha"], False, n["self"]),
    samples=_with() + _with(1.5),
    equation="celu(x)",
)
activation(
    "aten.threshold.default",
    sp.Piecewise((x, x > threshold), (value, True)),
    kernel=_backward("threshold", "threshold"),
    samples=_with(0.3, -1),
    equation="threshold(x)",
)
activation(
    "aten.hardtanh.default",
    sp.Piecewise((low, x <= low), (high, x >= high), (x, True)),
    kernel=_backward("hardtanh", "min_val", "max_val"),
    samples=_with() + _with(0, 0.5),
    equation="hardtanh(x)",
)
activation(
    "aten.hardswish.default",
    sp.Piecewise((0, x <= -3), (x, x >= 3), (x * (x + 3) / 6, True)),
    kernel=_backward("hardswish"),
    equation="hardswish(x)",
)
activation(
    "aten.hardsigmoid.default",
    sp.Piecewise((0, x <= -3), (1, x >= 3), (x / 6 + sp.Rational(1, 2), True)),
    kernel=_backward("hardsigmoid"),
    equation="hardsigmoid(x)",
)
activation(
    "aten.hardshrink.default",
    sp.Piecewise((0, (x >= -lambd) & (x <= lambd)), (x, True)),
    samples=_with() + _with(1.0),
    equation="hardshrink(x)",
)
activation(
    "aten.softshrink.default",
    sp.Piecewise((x - lambd, x > lambd), (x + lambd, x < -lambd), (0, True)),
    samples=_with() + _with(1.0),
    equation="softshrink(x)",
)


def _like_x(args: Any, type_of: Callable[[Ref], TensorType]) -> TensorType:
    return type_of(args["x"])


define(
    "pcc.random_slopes",
    "context",
    parameters=("x", "lower", "upper"),
    infer=_like_x,
    spell="torch.ops.aten.rrelu_with_noise_functional(x, x.new_empty(x.shape), lower, upper, True)[1]",
    random=True,
)


def _random_leaky(b: Builder, n: Node) -> tuple[Arg, Arg]:
    """rrelu: a leaky relu whose slopes are drawn while training, and the slopes."""
    lower, upper = n["lower"], n["upper"]
    if n["training"]:
        slopes = b("pcc.random_slopes", n["self"], lower, upper)
        return b.mul(n["self"], slopes), slopes
    return b("aten.leaky_relu.default", n["self"], (lower + upper) / 2), n["noise"]


rewrite("aten.rrelu_with_noise_functional.default", _random_leaky)
