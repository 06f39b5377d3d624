"""Numbers of at most 8 bits: rounding to the element types that torch does not compute with."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.values import NARROW, LowPrecision, type_name

INTEGERS: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}
FLOAT8: dict[int, torch.dtype] = {
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
LARGEST_E4M3FN = 464.0
"""Halfway between the largest number of float8e4m3fn, 448, and what would be the next; what lies above is too large."""


def limits(code: int) -> tuple[float, float]:
    """The smallest and the largest finite number of a narrow element type."""
    if code in INTEGERS:
        return INTEGERS[code]
    if code == TensorProto.FLOAT4E2M1:
        return -6.0, 6.0
    if code in FLOAT8:
        info = torch.finfo(FLOAT8[code])
        return info.min, info.max
    raise CompileError(f"{type_name(code)} holds powers of two only")


def narrowed(x: Tensor, code: int, saturate: bool = True, mode: str = "up") -> LowPrecision:
    """x cast to a narrow element type: floats to the nearest, integers truncated and wrapped, as a cast does.

    saturate: whether float8 takes its largest number for what is too large, rather than infinity or NaN. mode: how
    float8e8m0 rounds, "up", "down" or "nearest".
    """
    if code in INTEGERS:
        low, high = INTEGERS[code]
        whole = x.to(torch.int64)
        wrapped = torch.bitwise_and(whole - low, high - low) + low
        return LowPrecision(wrapped.to(NARROW[code]), code)
    x = x.to(torch.float32)
    if code == TensorProto.FLOAT8E8M0:
        return LowPrecision(power_of_two(x, saturate, mode), code)
    if code == TensorProto.FLOAT4E2M1:
        return LowPrecision(four_bits(x), code)
    limited = torch.clamp(x, *limits(code)) if saturate else x
    rounded = limited.to(FLOAT8[code]).to(torch.float32)
    if code == TensorProto.FLOAT8E4M3FN and not saturate:
        rounded = torch.where(x.abs() > LARGEST_E4M3FN, torch.nan, rounded)
    return LowPrecision(rounded, code)


def four_bits(x: Tensor) -> Tensor:
    """The nearest of 0, ½, 1, 1½, 2, 3, 4, 6 with the sign of x, ties to the even mantissa; NaN becomes −0."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = torch.clamp(torch.round(size / step) * step, max=6.0)
    return torch.where(torch.isnan(x), -0.0, torch.copysign(rounded, x))


def power_of_two(x: Tensor, saturate: bool, mode: str) -> Tensor:
    """The power of two near |x|: float8e8m0 is the exponent of a float32 alone."""
    bits = torch.bitwise_and(x.view(torch.int32), 0x7FFFFFFF)
    exponent, fraction = bits >> 23, torch.bitwise_and(bits, 0x7FFFFF)
    if mode == "up":
        upwards = fraction > 0
    elif mode == "nearest":
        upwards = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    else:
        upwards = torch.zeros_like(fraction, dtype=torch.bool)
    if saturate:
        upwards = upwards & (exponent < 254)
    upwards = upwards & (exponent < 255)
    return (exponent + upwards).to(torch.uint8).view(torch.float8_e8m0fnu).to(torch.float32)
