"""Files that somebody else wrote: only regular ones are opened, and none beyond its largest size."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pccompile.diagnostics import CompileError, first_line, printable


def open_file(path: Path, largest: int | None = None) -> BinaryIO:
    """A regular file, opened for reading; a pipe, a device or a folder is not even waited for. Raises CompileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as e:
        if isinstance(e, IsADirectoryError):
            raise CompileError(f"cannot read {printable(str(path))}: it is not a file") from None
        reason = getattr(e, "strerror", None) or first_line(e)
        raise CompileError(f"cannot read {printable(str(path))}: {reason}") from None
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise CompileError(f"cannot read {printable(str(path))}: it is not a file")
    if largest is not None and about.st_size > largest:
        os.close(descriptor)
        what = f"a file of {about.st_size:,} bytes; at most {largest:,} are read"
        raise CompileError(f"cannot read {printable(str(path))}: {what}")
    return os.fdopen(descriptor, "rb")


def untrusted(path: Path) -> CompileError:
    """What is said of a file that would run code."""
    return CompileError(
        f"{printable(str(path))} is not opened: a .pt2 file can run any code while torch loads it",
        hint="if you trust who made it, --trust-code, or compile(..., trust_code=True)",
    )


def read_file(path: Path, largest: int) -> bytes:
    """The bytes of a regular file. Raises CompileError where it cannot be read or is larger."""
    try:
        with open_file(path, largest) as file:
            return file.read(largest)
    except OSError as e:
        raise CompileError(f"cannot read {printable(str(path))}: {e.strerror or first_line(e)}") from None
