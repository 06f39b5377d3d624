"""Casts between element types, those that torch does not compute with among them."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.low_precision import narrowed
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import (
    DTYPES,
    HOST_LIMIT,
    NARROW,
    NUMPY,
    TEXT,
    Host,
    LowPrecision,
    StringArray,
    Value,
    as_host,
    as_tensor,
    described,
    stored,
    tensor_of,
    text_of,
    type_name,
)

NUMPY_OF = {c: onnx.helper.tensor_dtype_to_np_dtype(c) for c in DTYPES}


@operator("Cast")
def cast(node: Node, x: Value) -> Value:
    """The elements with another type."""
    return converted(node, x, node.get("to"))


@operator("CastLike")
def cast_like(node: Node, x: Value, like: Value) -> Value:
    """The elements with the type of `like`."""
    return converted(node, x, code_of(like))


def converted(node: Node, x: Value, code: int) -> Value:
    """x with ONNX's element type `code`; numbers become text, and text numbers, on the host."""
    if isinstance(x, StringArray):
        return parsed(x, code)
    if isinstance(x, Host) and code in NUMPY_OF and not x.symbolic and x.array.size <= HOST_LIMIT:
        return Host(x.array.astype(NUMPY_OF[code]), DTYPES[code])
    numbers = x.tensor if isinstance(x, LowPrecision) else as_tensor(x)
    if code in NARROW:
        return narrowed(numbers, code, bool(node.get("saturate", 1)), node.get("round_mode", "up"))
    if code == TEXT:
        known = Host(x.numpy(), numbers.dtype) if isinstance(x, LowPrecision) else as_host(x, "what becomes text")
        return text_of(known.array.astype(str))
    if code not in DTYPES:
        raise CompileError(f"{node.op_type} to {type_name(code)}, which torch does not have")
    return numbers if numbers.dtype is DTYPES[code] else numbers.to(DTYPES[code])


def parsed(x: StringArray, code: int) -> Value:
    """The numbers that strings spell."""
    if code == TEXT:
        return x
    if code in NARROW:
        return narrowed(torch.from_numpy(x.array.astype(np.float32)), code)
    dtype = DTYPES[code]
    if dtype is torch.bool:
        raise CompileError("text does not become boolean: ONNX does not say how")
    return tensor_of(x.array.astype(NUMPY.get(dtype, np.float32)), dtype)


def code_of(value: Value) -> int:
    """ONNX's number of a value's element type."""
    if isinstance(value, StringArray):
        return TEXT
    if isinstance(value, LowPrecision):
        return value.code
    dtype = value.dtype if isinstance(value, (Tensor, Host)) else as_tensor(value).dtype
    return next(c for c, d in DTYPES.items() if d is dtype)


@operator("BitCast")
def bit_cast(node: Node, x: Value) -> Value:
    """The same bits read as another element type of the same size."""
    code = node.get("to")
    if isinstance(x, LowPrecision) or code in NARROW:
        array = x.numpy() if isinstance(x, LowPrecision) else as_host(x, "what is read as another type").array
        return stored(array.view(onnx.helper.tensor_dtype_to_np_dtype(code)), code)
    tensor = as_tensor(x)
    if tensor.dtype.itemsize != DTYPES[code].itemsize:
        raise CompileError(f"BitCast of {described(x)} to {type_name(code)}, which has another size")
    return tensor.view(DTYPES[code])
