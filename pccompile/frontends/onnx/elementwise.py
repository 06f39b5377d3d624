"""Operators that work on each element by itself: arithmetic, activations, comparisons, logic, casts."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, Operand, Value

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

COMPARE: dict[str, Callable[[Any, Any], Tensor]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


@operator(*UNARY)
def unary(node: Node, x: Tensor) -> Tensor:
    """A function of each element."""
    return UNARY[node.op_type](x)


@operator("Identity")
def identity(node: Node, x: Value) -> list[Value]:
    """The value itself: a tensor, a sequence or nothing."""
    return [x]


@operator(*COMPARE)
def compare(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """A relation of two values."""
    return COMPARE[node.op_type](a, b)


@operator("Add")
def add(node: Node, a: Operand, b: Operand) -> Any:
    """The sum."""
    return a + b


@operator("Sub")
def subtract(node: Node, a: Operand, b: Operand) -> Any:
    """The difference."""
    return a - b


@operator("Mul")
def multiply(node: Node, a: Operand, b: Operand) -> Any:
    """The product."""
    return a * b


@operator("Div")
def divide(node: Node, a: Operand, b: Operand) -> Any:
    """The quotient; integers are truncated towards zero."""
    integral = isinstance(a, Tensor) and not (a.is_floating_point() or a.is_complex())
    return torch.div(a, b, rounding_mode="trunc") if integral else a / b


@operator("Pow")
def power(node: Node, base: Operand, exponent: Operand) -> Any:
    """`base` to the power of `exponent`, in the type of `base`."""
    result: Any = base**exponent
    return result.to(base.dtype) if isinstance(base, Tensor) and result.dtype is not base.dtype else result


@operator("Mod")
def modulo(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The remainder with the sign of the divisor, or of the dividend with `fmod`."""
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


@operator("Max")
def maximum(node: Node, *values: Tensor) -> Tensor:
    """The largest of several values."""
    return reduce(torch.maximum, values)


@operator("Min")
def minimum(node: Node, *values: Tensor) -> Tensor:
    """The smallest of several values."""
    return reduce(torch.minimum, values)


@operator("Sum")
def sum_(node: Node, *values: Tensor) -> Tensor:
    """The sum of several values."""
    return reduce(torch.add, values)


@operator("Mean")
def mean(node: Node, *values: Tensor) -> Tensor:
    """The mean of several values."""
    return reduce(torch.add, values) / len(values)


@operator("BitShift")
def bit_shift(node: Node, x: Tensor, count: Tensor) -> Tensor:
    """Bits moved to the left or the right."""
    wide, by = x.to(torch.int64), count.to(torch.int64)
    shift = torch.bitwise_left_shift if node.get("direction") == "LEFT" else torch.bitwise_right_shift
    return shift(wide, by).to(x.dtype)


@operator("IsInf")
def is_inf(node: Node, x: Tensor) -> Tensor:
    """Which elements are infinite, of the signs asked for."""
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    if not (positive or negative):
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@operator("Where")
def where(node: Node, condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """Elements of `a` where `condition` holds, else of `b`."""
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = torch.scalar_tensor(a)
    return torch.where(condition, a, b)


@operator("Clip", statistics=(1, 2))
def clip(node: Node, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    """Elements limited to a range; the limits are inputs, or attributes up to opset 10."""
    bounds = [bound(node, x, v, name) for v, name in ((low, "min"), (high, "max"))]
    if all(b is None for b in bounds):
        return x
    if any(isinstance(b, Tensor) for b in bounds):
        result = x if bounds[0] is None else torch.maximum(x, torch.as_tensor(bounds[0], dtype=x.dtype))
        return result if bounds[1] is None else torch.minimum(result, torch.as_tensor(bounds[1], dtype=x.dtype))
    return torch.clamp(x, *bounds)


def bound(node: Node, x: Tensor, value: Value, name: str) -> Any:
    """One limit of Clip: a number, a tensor or nothing."""
    number = node.get(name) if value is None else value.item() if isinstance(value, Host) else value
    if isinstance(number, float) and x.dtype.is_floating_point:
        limit = torch.finfo(torch.float32).max
        # exporters write "no limit" as the largest float32
        return None if abs(number) >= limit and (number > 0) == (name == "max") else number
    return number


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, node.get("alpha", 0.01))


@operator("PRelu", weights=(1,))
def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero; the slope broadcasts, and a vector that cannot goes by channel."""
    if slope.dim() == 1 and x.dim() > 2 and slope.shape[0] not in (1, x.shape[-1]) and slope.shape[0] == x.shape[1]:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha (eˣ − 1) below zero."""
    return F.elu(x, node.get("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha (e^(x/alpha) − 1) below zero."""
    return F.celu(x, node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """The scaled exponential linear unit."""
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return F.selu(x)
    return torch.mul(F.elu(x, alpha), gamma)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    """The Gaussian error linear unit."""
    return F.gelu(x, approximate=node.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """alpha x + beta, limited to 0 … 1."""
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0.0, 1.0)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    """x above alpha, else 0."""
    return F.threshold(x, node.get("alpha", 1.0), 0.0)


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    alpha = node.get("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    """x moved towards zero by `bias`, and 0 between −lambd and lambd."""
    limit, bias = node.get("lambd", 0.5), node.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@operator("Dropout")
def dropout(node: Node, x: Tensor, ratio: Host | None = None, training: Host | None = None) -> Any:
    """x with elements dropped while training; the mask where it is read."""
    rate = node.get("ratio", 0.5) if ratio is None else ratio.item()
    asked = training is not None and bool(training.item())
    if not asked or rate == 0:
        return (x, torch.ones_like(x, dtype=torch.bool)) if node.wants(1) else x
    if not node.wants(1):
        return F.dropout(x, rate, training=True)
    mask = torch.rand_like(x) >= rate
    return x * mask / (1 - rate), mask
