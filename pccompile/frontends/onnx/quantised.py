"""Quantisation: numbers rounded to a scale, and integer arithmetic on them.

Rounding has no gradient; what is dequantised has one with respect to its scale.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.casts import code_of
from pccompile.frontends.onnx.convolution import conv
from pccompile.frontends.onnx.low_precision import INTEGERS, narrowed
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import DTYPES, NARROW, LowPrecision, Value, as_tensor, normal_axis

UINT8 = 2


def numbers(value: Value) -> Tensor:
    """The numbers of a value as a tensor, narrow ones in the type that holds them."""
    return value.tensor if isinstance(value, LowPrecision) else as_tensor(value)


def along(node: Node, part: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point as it lies beside x: one number, one an index of `axis`, or one a block of that axis."""
    if part.dim() == 0 or part.numel() == 1:
        return part.reshape(())
    axis, block = normal_axis(node.get("axis", 1), x.dim()), node.get("block_size", 0)
    if part.dim() == 1 and not block:
        return part.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    if not block:
        raise CompileError(f"{node.op_type} has a scale of shape {list(part.shape)} but no block_size")
    return part.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])


@operator("QuantizeLinear", statistics=(1,))
def quantize(node: Node, x: Tensor, scale: Tensor, zero: Value = None) -> Tensor | LowPrecision:
    """x / scale, rounded and moved by the zero point, in the zero point's type."""
    code = node.get("output_dtype", 0) or (UINT8 if zero is None else code_of(zero))
    precision = DTYPES[node.get("precision", 0) or code_of(scale)]
    ratio = x.to(precision) / along(node, scale, x).to(precision)
    shift = None if zero is None else along(node, numbers(zero), x)
    if code in NARROW and code not in INTEGERS:
        return narrowed(ratio if shift is None else ratio + shift, code, bool(node.get("saturate", 1)))
    return rounded(ratio, shift, code)


def rounded(x: Tensor, shift: Tensor | None, code: int) -> Tensor | LowPrecision:
    """The nearest integers, moved by `shift` and limited to the element type `code`."""
    whole = torch.round(x) if shift is None else torch.round(x) + shift.to(x.dtype)
    if code in INTEGERS:
        return narrowed(torch.clamp(whole, *INTEGERS[code]), code)
    info = torch.iinfo(DTYPES[code])
    # through int32: torch casts no float to uint16
    return torch.clamp(whole.to(torch.float32), info.min, info.max).to(torch.int32).to(DTYPES[code])


@operator("DequantizeLinear", statistics=(1,))
def dequantize(node: Node, x: Value, scale: Tensor, zero: Value = None) -> Tensor:
    """(x − zero point) · scale."""
    whole = numbers(x)
    shifted = whole.to(torch.float32)
    if zero is not None and not (isinstance(x, LowPrecision) and x.tensor.is_floating_point()):
        shifted = shifted - along(node, numbers(zero).to(torch.float32), whole)
    code = node.get("output_dtype", 0)
    return (shifted * along(node, scale, whole)).to(DTYPES[code] if code else scale.dtype)


def shifted_rows(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """x − zero point as float64, in which products of integers are exact; a vector goes along `axis`."""
    if zero is None:
        return x.double()
    if zero.dim() == 1 and zero.numel() > 1:
        zero = zero.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    return x.double() - zero.double()


@operator("MatMulInteger")
def matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """The product of two matrices of integers, as int32."""
    return torch.matmul(shifted_rows(a, a_zero, -2), shifted_rows(b, b_zero, -1)).to(torch.int32)


@operator("QLinearMatMul", statistics=(1, 4, 6))
def quantised_matmul(
    node: Node,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> Tensor:
    """The product of two quantised matrices, quantised."""
    product = torch.matmul(shifted_rows(a, a_zero, -2), shifted_rows(b, b_zero, -1))
    by_row = a_scale[:, None] if a_scale.dim() == 1 and a_scale.numel() > 1 else a_scale
    return requantised(product, by_row * b_scale / scale, zero)


def requantised(product: Tensor, factor: Tensor, zero: Tensor) -> Tensor:
    """An integer product scaled, moved by the zero point and limited to its type."""
    info = torch.iinfo(zero.dtype)
    return torch.clamp(torch.round(product * factor.double() + zero.double()), info.min, info.max).to(zero.dtype)


def integer_conv(node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None) -> Tensor:
    """The convolution of integers moved by their zero points, exactly, as float64."""
    result: Tensor = conv(replace(node, op_type="Conv"), shifted_rows(x, x_zero, 1), shifted_rows(w, w_zero, 0))
    return result


@operator("ConvInteger")
def conv_integer(
    node: Node, x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """The convolution of integers, as int32."""
    return integer_conv(node, x, w, x_zero, w_zero).to(torch.int32)


@operator("QLinearConv", statistics=(1, 4, 6))
def quantised_conv(
    node: Node,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution of quantised numbers, quantised."""
    result = integer_conv(node, x, w, x_zero, w_zero)
    channels = [-1, *[1] * (x.dim() - 2)]
    if bias is not None:
        result = result + bias.double().reshape(channels)
    by_channel = w_scale.reshape(channels) if w_scale.numel() > 1 else w_scale
    return requantised(result, x_scale * by_channel / scale, zero)
