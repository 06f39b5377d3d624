"""Files of tensors that a user brings: .npz, .npy, .safetensors, and ONNX's own .pb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pccompile.diagnostics import CompileError, UsageError, printable

KINDS = (".npz", ".npy", ".safetensors", ".pb")


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, arrays or torch's; "" is the name of one that has none. Raises CompileError."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--data {printable(str(path), 80)}: expected a file {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        return _read(path)
    except Exception as e:
        raise CompileError(f"{printable(str(path))} holds no tensors: {printable(str(e), 120)}") from e


def _read(path: Path) -> dict[str, Any]:
    match path.suffix.lower():
        case ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in file.files}
        case ".npy":
            return {"": np.load(path, allow_pickle=False)}
        case ".pb":
            import onnx

            tensor = onnx.TensorProto.FromString(path.read_bytes())
            return {tensor.name: onnx.numpy_helper.to_array(tensor)}
    from safetensors.torch import load_file

    return dict(load_file(path))
