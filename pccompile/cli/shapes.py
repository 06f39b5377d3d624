"""Sizes of example inputs on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pccompile.diagnostics import UsageError, listing, printable

if TYPE_CHECKING:
    import torch

SHAPE = re.compile(r"(?P<name>.+)=(?P<sizes>(?:\d+(?:,\d+)*)?)(?::(?P<dtype>[a-z]+\d*))?", re.DOTALL)
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool", "uint8", "int8", "int16", "int32",
    "int64",
)  # fmt: skip
ENTRIES = 2**31


@dataclass(frozen=True)
class Shape:
    """One `--shape name=sizes:dtype`."""

    name: str
    sizes: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Its type, where one is given."""
        return dtype_of(self.kind) if self.kind else None


def dtype_of(kind: str) -> torch.dtype:
    """torch's type of that name, one of DTYPES. Imports torch."""
    import torch

    found: torch.dtype = getattr(torch, kind)
    return found


def parse_shape(text: str) -> Shape:
    """A `--shape` option. Raises UsageError."""
    match = SHAPE.fullmatch(text)
    if not match:
        raise UsageError(f"--shape {printable(text, 80)}: expected name=2,3 or name=2,3:int64")
    if match["dtype"] and match["dtype"] not in DTYPES:
        raise UsageError(f"--shape {printable(text, 80)}: unknown dtype; one of {', '.join(DTYPES)}")
    sizes = tuple(int(s) for s in match["sizes"].split(",") if s)
    entries = 1
    for size in sizes:
        entries *= size
    if entries > ENTRIES:
        raise UsageError(f"--shape {printable(text, 80)}: more than {ENTRIES} entries")
    return Shape(match["name"], sizes, match["dtype"] or "")


def check_names(shapes: Sequence[Shape], known: Sequence[str]) -> None:
    """Raise UsageError for shapes of inputs that the model does not have, or that are given twice."""
    seen: set[str] = set()
    for s in shapes:
        if s.name not in known:
            inputs = listing(known, 10) or "none"
            raise UsageError(f"--shape: the model has no input {printable(s.name, 80)}; its inputs are {inputs}")
        if s.name in seen:
            raise UsageError(f"--shape: input {printable(s.name, 80)} is given twice")
        seen.add(s.name)
