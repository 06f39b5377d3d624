"""What pccompile writes: a generated file and its tensors, all or nothing, and never over somebody else's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pccompile.files.writing import SEAL, check_folder, check_replaceable, write_together
from pccompile.ir.names import identifier


def stem(name: str) -> str:
    """The stem of the files that are written for a model called `name`."""
    return f"{identifier(name)}_pc"


def check_writable(folder: Path, name: str) -> None:
    """Raise CompileError where writing would fail or destroy what pccompile did not write, or somebody edited."""
    check_folder(folder)
    check_replaceable([folder / f"{stem(name)}.py", folder / f"{stem(name)}.safetensors"])


def save_generated(source: str, tensors: Mapping[str, Tensor], folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name_pc.py` and `name_pc.safetensors`, both or neither; return their paths. Raises CompileError."""
    check_writable(folder, name)
    arrays = {k: t.detach().contiguous().clone() for k, t in tensors.items()}
    data, python = write_together(
        folder,
        {
            f"{stem(name)}.safetensors": lambda path: save_file(arrays, str(path), metadata={"generator": SEAL}),
            f"{stem(name)}.py": lambda path: path.write_text(f"{source}\n# {SEAL}\n", encoding="utf-8"),
        },
    )
    return python, data
