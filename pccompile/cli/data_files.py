"""Files of tensors that a user brings: .npz, .npy, .safetensors, and ONNX's own .pb."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pccompile.diagnostics import CompileError, UsageError, first_line, printable
from pccompile.files.reading import open_file
from pccompile.limits import account, spend

KINDS = (".npz", ".npy", ".safetensors", ".pb")


def check_kind(path: Path) -> None:
    """Raise UsageError for the name of a file that holds no tensors."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--data {printable(str(path), 80)}: expected a file {', '.join(KINDS[:-1])} or {KINDS[-1]}")


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, arrays or torch's; "" is the name of one that has none. Raises CompileError."""
    check_kind(path)
    shown = printable(str(path))
    try:
        with open_file(path) as file, account(file.seek(0, 2)):
            file.seek(0)
            found = _read(path, file)
    except (CompileError, MemoryError):
        raise
    except Exception as e:  # zip, npy, safetensors and protobuf have errors of many kinds
        raise CompileError(f"{shown} holds no tensors: {printable(first_line(e), 120)}") from e
    for name, array in found.items():
        if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
            raise CompileError(f"{shown}: {printable(name)} is of type {array.dtype}, not numbers")
    return found


def _read(path: Path, file: BinaryIO) -> dict[str, Any]:
    match path.suffix.lower():
        case ".npz":
            _counted(path)
            with np.load(path, allow_pickle=False) as archive:
                return {k: archive[k] for k in archive.files}
        case ".npy":
            return {"": np.load(path, allow_pickle=False)}
        case ".pb":
            import onnx

            tensor = onnx.TensorProto.FromString(file.read())
            return {tensor.name: onnx.numpy_helper.to_array(tensor)}
    from safetensors.torch import load_file

    return dict(load_file(path))


def _counted(path: Path) -> None:
    """Count the sizes of the arrays of a .npz file, which may be compressed. Raises BudgetError where they are many."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as member:
                    old = np.lib.format.read_magic(member) == (1, 0)
                    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(member)
                    spend("memory", math.prod(shape) * dtype.itemsize, printable(entry.filename))
