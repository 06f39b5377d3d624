"""What comes in and goes out of an ONNX graph, as numpy arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from pccompile.frontends.onnx.values import NARROW, LowPrecision, StringArray, stored, text_of


def from_numpy(value: Any) -> Any:
    """An array (or TensorProto) as the value that a graph reads, a list as a list of them, nothing as nothing."""
    if value is None:
        return None
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [from_numpy(v) for v in value]
    array = np.asarray(value)
    if array.dtype.kind in "OUST":
        return text_of(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return stored(array, code) if code in NARROW else torch.from_numpy(np.array(array, order="C"))


def to_numpy(value: Any) -> Any:
    """A value as an array, a list as a list of them, nothing as nothing."""
    if isinstance(value, (list, tuple)):
        return [to_numpy(v) for v in value]
    if isinstance(value, StringArray):
        return value.array
    if isinstance(value, LowPrecision):
        return value.numpy()
    if not isinstance(value, Tensor):
        return value
    data = value.detach()
    return data.float().numpy().astype(ml_dtypes.bfloat16) if data.dtype is torch.bfloat16 else data.numpy()
