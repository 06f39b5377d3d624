"""Files that are written together or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pccompile.diagnostics import OutputError, printable

Write = Callable[[Path], object]
"""Writes one file at the path that it is given."""


def write_together(folder: Path, files: Mapping[str, Write]) -> tuple[Path, ...]:
    """Write all of `files`, by their names in `folder`, or none; return their paths.

    They are written under other names first and take their own from the last to the first, so that the first, which
    speaks for the others, is there when they are. Raises OutputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pccompile") as scratch:
            for name, write in files.items():
                write(Path(scratch) / name)
            for name in reversed(list(files)):
                os.replace(Path(scratch) / name, folder / name)
    except OSError as e:
        raise OutputError(f"cannot write to {printable(str(folder))}: {e.strerror or e}") from e
    return tuple(folder / name for name in files)
