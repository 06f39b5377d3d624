"""Numbers that a user gives for an input or an initializer, brought to the type and shape that the file declares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from pccompile.diagnostics import CompileError, Problem, listing, printable
from pccompile.frontends.onnx.boundary import from_numpy, to_numpy
from pccompile.frontends.onnx.input_types import InputType
from pccompile.frontends.onnx.values import DTYPES, NUMPY, Value, host_of, type_name

Array = np.ndarray[Any, Any]


def fitted(entry: InputType, value: Any, sizes: Sequence[int] | None = None) -> Array:
    """`value` in the element type and shape of an input; one number fills it, a flat list is laid out in its shape.

    sizes: the input's sizes, where the user says them. Raises CompileError where the numbers do not fit.
    """
    array = to_numpy(value) if isinstance(value, Tensor) else numbers_of(entry.name, value)
    array = shaped(entry, array, sizes)
    dtype = ml_dtypes.bfloat16 if entry.dtype is torch.bfloat16 else NUMPY[entry.dtype]
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    whole = not (entry.dtype.is_floating_point or entry.dtype.is_complex)
    if (whole and not np.array_equal(converted, array)) or (array.dtype.kind == "c" and not entry.dtype.is_complex):
        raise CompileError(f"input {printable(entry.name, 80)} is {_name(entry)}, which cannot hold {_shown(array)}")
    return converted


def numbers_of(name: str, value: Any) -> Array:
    """Numbers or lists of them as an array."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.asarray("")
    if array.dtype.kind not in "biufcV":
        raise CompileError(
            f"what is given for {printable(name, 80)} is no array of numbers: {printable(str(value), 80)}"
        )
    return array


def shaped(entry: InputType, array: Array, sizes: Sequence[int] | None) -> Array:
    """`array` in the shape that `sizes` or the file say."""
    declared: Sequence[int | str] | None = sizes if sizes is not None else entry.shape
    if declared is None:
        return array
    open_ = [s for s in declared if not isinstance(s, int)]
    if array.ndim == 0:
        return np.broadcast_to(array, [s if isinstance(s, int) else 1 for s in declared])
    if array.ndim == len(declared) and all(s in (n, None) for s, n in zip(_known(declared), array.shape, strict=True)):
        return array
    known = math.prod(s for s in declared if isinstance(s, int))
    flat = array.ndim == 1 or array.size == 1
    if flat and len(open_) <= 1 and (array.size == known if not open_ else known and array.size % known == 0):
        return array.reshape([s if isinstance(s, int) else -1 for s in declared])
    shape = "[" + ", ".join(map(str, declared)) + "]"
    given = f"of shape {list(array.shape)}" if array.ndim != 1 else f"{array.size} numbers"
    raise CompileError(f"input {printable(entry.name, 80)} is {_name(entry)} {shape}; what is given is {given}")


def _known(declared: Sequence[int | str]) -> list[int | None]:
    return [s if isinstance(s, int) else None for s in declared]


def _name(entry: InputType) -> str:
    return str(entry.dtype).removeprefix("torch.")


def _shown(array: Array) -> str:
    return listing([str(v) for v in array.reshape(-1)[:4]], 4)


def fixed_inputs(types: Sequence[InputType], constants: Mapping[str, Any]) -> dict[str, Value]:
    """What inputs are fixed to. Raises CompileError for numbers that do not fit."""
    known = {t.name: t for t in types}
    fixed: dict[str, Value] = {}
    for name, value in constants.items():
        if known[name].form == "tensor":
            fixed[name] = host_of(fitted(known[name], value), known[name].dtype)
        else:
            fixed[name] = from_numpy(to_numpy(value) if isinstance(value, Tensor) else value)
    return fixed


def check_known(model: onnx.ModelProto, constants: Mapping[str, Any]) -> None:
    """Raise CompileError for constants that are neither inputs nor initializers."""
    initializers = {t.name for t in model.graph.initializer}
    inputs = [i.name for i in model.graph.input if i.name not in initializers]
    absent = [n for n in constants if n not in initializers and n not in inputs]
    if absent:
        shown = listing([printable(n, 60) for n in inputs], 10) or "none"
        problems = [
            f"there is no input {printable(n, 80)} to fix; inputs are {shown}, and initializers can be fixed too"
            for n in absent
        ]
        raise CompileError([Problem(p) for p in problems])


def with_initializers(model: onnx.ModelProto, constants: Mapping[str, Any]) -> onnx.ModelProto:
    """`model` with other numbers in the initializers that `constants` names."""
    names = {t.name for t in model.graph.initializer} & set(constants)
    if not names:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(_replaced(tensor, constants[tensor.name]))
    return changed


def _replaced(tensor: onnx.TensorProto, value: Any) -> onnx.TensorProto:

    if tensor.data_type not in DTYPES:
        raise CompileError(
            f"{printable(tensor.name, 80)} is {type_name(tensor.data_type)}, which is not fixed to numbers"
        )
    entry = InputType(tensor.name, DTYPES[tensor.data_type], tuple(tensor.dims))
    return numpy_helper.from_array(np.array(fitted(entry, value), order="C"), tensor.name)
