"""What comes in and goes out of an ONNX graph, as numpy arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor


def from_numpy(value: Any) -> Any:
    """An array (or TensorProto) as a tensor, a list as a list of them, nothing as nothing."""
    if value is None:
        return None
    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [from_numpy(v) for v in value]
    array = np.asarray(value)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def to_numpy(value: Any) -> Any:
    """A tensor as an array, a list as a list of them, nothing as nothing."""
    if isinstance(value, (list, tuple)):
        return [to_numpy(v) for v in value]
    if not isinstance(value, Tensor):
        return value
    data = value.detach()
    return data.float().numpy().astype(ml_dtypes.bfloat16) if data.dtype is torch.bfloat16 else data.numpy()
