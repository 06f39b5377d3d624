"""Tensors as a file stores them: inside it, or beside it in files that must stay in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.onnx.values import DTYPES, NARROW, TEXT, product, text_of, type_name

PACKED: dict[int, int] = {
    onnx.TensorProto.INT4: 2,
    onnx.TensorProto.UINT4: 2,
    onnx.TensorProto.FLOAT4E2M1: 2,
    onnx.TensorProto.INT2: 4,
    onnx.TensorProto.UINT2: 4,
}
"""How many numbers share a byte in a file."""


def verify(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Raise CompileError if the numbers of `tensor` are absent, cut short, or outside `folder`."""
    where = Location(tensor.name)
    if tensor.data_type not in DTYPES and tensor.data_type not in NARROW and tensor.data_type != TEXT:
        raise CompileError(f"tensor {tensor.name} holds {type_name(tensor.data_type)}, which is not supported", where)
    if any(d < 0 for d in tensor.dims):
        raise CompileError(f"tensor {tensor.name} has a negative size: {list(tensor.dims)}", where)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        external_place(tensor, folder)
    elif tensor.data_type != TEXT and tensor.raw_data and len(tensor.raw_data) != expected_bytes(tensor):
        raise CompileError(
            f"tensor {tensor.name} of shape {list(tensor.dims)} should have {expected_bytes(tensor)} bytes, "
            f"the file has {len(tensor.raw_data)}",
            where,
        )


def array_of(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray[Any, Any]:
    """The numbers of `tensor`; raises CompileError where there are none."""
    verify(tensor, folder)
    try:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return external(tensor, folder)
        if tensor.data_type == TEXT:
            return text_of(list(tensor.string_data)).array.reshape(tuple(tensor.dims))
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        return array
    except Exception as error:
        raise CompileError(f"tensor {tensor.name} cannot be read: {first_line(error)}", Location(tensor.name)) from None


def expected_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the shape and type call for."""
    count = int(product(tensor.dims))
    each = PACKED.get(tensor.data_type, 1)
    return -(-count // each) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def external_place(tensor: onnx.TensorProto, folder: Path | None) -> tuple[Path, int]:
    """The file that a tensor is stored in, and where in it; raises CompileError if it cannot be there."""
    where = Location(tensor.name)
    entries = {e.key: e.value for e in tensor.external_data}
    name = entries.get("location", "")
    if folder is None:
        raise CompileError(
            f"tensor {tensor.name} is in the file {name!r}, but the model was not read from a folder",
            where,
            hint="pass the path of the .onnx file instead of its contents",
        )
    path = inside(folder, name, tensor.name)
    offset, length = number(entries, "offset", 0, tensor.name), number(entries, "length", -1, tensor.name)
    wanted = expected_bytes(tensor)
    if length not in (-1, wanted):
        raise CompileError(f"tensor {tensor.name} needs {wanted} bytes, its external data says {length}", where)
    if offset + wanted > path.stat().st_size:
        raise CompileError(
            f"tensor {tensor.name} should lie at bytes {offset} to {offset + wanted} of {name}, "
            f"which has {path.stat().st_size}",
            where,
        )
    return path, offset


def external(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray[Any, Any]:
    """The numbers of a tensor that is stored in another file of the model's folder."""
    path, offset = external_place(tensor, folder)
    with path.open("rb") as file:
        file.seek(offset)
        content = onnx.TensorProto()
        content.dims.extend(tensor.dims)
        content.data_type = tensor.data_type
        content.raw_data = file.read(expected_bytes(tensor))
    array: np.ndarray[Any, Any] = numpy_helper.to_array(content)
    return array


def inside(folder: Path, name: str, tensor: str) -> Path:
    """The file called `name` in `folder`; raises CompileError if it is absent or elsewhere."""
    where = Location(tensor)
    hint = "external data must lie beside the model"
    if not name or "\0" in name:
        raise CompileError(f"tensor {tensor} names no usable external file: {name!r}", where)
    try:
        path = (folder / name).resolve()
        outside = not path.is_relative_to(folder.resolve())
        exists = not outside and path.is_file()
    except (OSError, RuntimeError, ValueError):
        raise CompileError(f"tensor {tensor} names no usable external file: {name!r}", where) from None
    if outside:
        raise CompileError(f"tensor {tensor} points outside the model's folder: {name!r}", where, hint)
    if not exists:
        raise CompileError(f"tensor {tensor} is in the file {name!r}, which is absent", where, hint)
    return path


def number(entries: dict[str, str], key: str, default: int, tensor: str) -> int:
    """A non-negative number among external data's entries."""
    text = entries.get(key, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CompileError(f"tensor {tensor} has the external {key} {text!r}, not a number", Location(tensor))
    return int(text)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
