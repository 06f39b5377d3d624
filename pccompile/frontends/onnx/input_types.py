"""An input as a file declares it, and what is wrong with a value that is given for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import Problem
from pccompile.frontends.onnx.values import LowPrecision, StringArray, described, type_name

Shape = tuple["int | str", ...]


@dataclass(frozen=True, slots=True)
class InputType:
    """An input's name, element type, and sizes: numbers, names of what varies, or None where even the rank is open.

    form: "tensor"; "sequence" or "optional", whose elements are not described further; "string" or the name of a narrow
    element type, the dtype then being the one that stands for it.
    """

    name: str
    dtype: torch.dtype
    shape: Shape | None
    form: str = "tensor"


def describe(entry: InputType) -> str:
    """An input's type as error messages show it."""
    if entry.form in ("sequence", "optional"):
        return entry.form
    sizes = "of any rank" if entry.shape is None else "[" + ", ".join(map(str, entry.shape)) + "]"
    return f"{str(entry.dtype).removeprefix('torch.') if entry.form == 'tensor' else entry.form} {sizes}"


def mismatches(entry: InputType, value: Any) -> list[Problem]:
    """What is wrong with a value given for an input."""
    match entry.form, value:
        case ("optional", _) | ("sequence", list()):
            return []
        case "tensor", Tensor():
            right = value.dtype is entry.dtype and fits(entry.shape, value.shape)
        case "string", StringArray():
            right = fits(entry.shape, value.array.shape)
        case _, LowPrecision():
            right = type_name(value.code) == entry.form and fits(entry.shape, value.tensor.shape)
        case "tensor", _:
            what = f"input {entry.name} should be a tensor, {describe(entry)}; it is a {type(value).__name__}"
            return [Problem(what)]
        case _:
            return [Problem(f"input {entry.name} should be {describe(entry)}; it is a {type(value).__name__}")]
    return [] if right else [Problem(f"input {entry.name} should be {describe(entry)}, it is {described(value)}")]


def fits(declared: Shape | None, shape: Sequence[int]) -> bool:
    """Whether a shape is one that an input declares."""
    return declared is None or (
        len(shape) == len(declared)
        and not any(isinstance(w, int) and w != s for w, s in zip(declared, shape, strict=True))
    )
