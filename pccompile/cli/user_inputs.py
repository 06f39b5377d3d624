"""What a command line says about a model's inputs: sizes, numbers, files of numbers, and what is fixed or frozen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pccompile.cli.data_files import tensors_of
from pccompile.cli.shapes import DTYPES, Shape, check_names, dtype_of, parse_shape
from pccompile.diagnostics import CompileError, UsageError, listing, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class UserInputs:
    """The options about inputs. `values` and `constants` hold numbers by name; `data` the tensors of a file.

    strict: whether a name in the file that is none of the model's inputs is an error; targets of circuits are none.
    shared: names may be those of another model's inputs.
    """

    shapes: tuple[Shape, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    strict: bool = True
    shared: bool = False

    def of(self, known: Sequence[str]) -> tuple[Shape, ...]:
        """The shapes of a model's inputs. Raises UsageError for those of others, unless they may be there."""
        shapes = tuple(s for s in self.shapes if s.name in known) if self.shared else self.shapes
        check_names(shapes, known)
        return shapes

    def numbers(self, inputs: Sequence[str]) -> dict[str, Any]:
        """Values and tensors of the file for the model's `inputs`, by name. Raises UsageError and CompileError."""
        for name in self.values:
            if name not in inputs and self.strict:
                raise UsageError(unknown("--value", name, inputs))
        data = dict(self.data)
        if "" in data and len(data) == 1:
            if len(inputs) != 1:
                raise UsageError(f"--data: the tensor has no name; the model's inputs are {listing(inputs, 10)}")
            data = {inputs[0]: data[""]}
        for name in sorted(set(data) - set(inputs)) if self.strict else ():
            raise CompileError(unknown("--data", name, inputs))
        data = {n: t for n, t in data.items() if n in inputs}
        if twice := sorted(set(data) & set(self.values)):
            raise UsageError(f"--value: input {printable(twice[0], 80)} is given twice, the other time in --data")
        return data | {n: v for n, v in self.values.items() if n in inputs}


def unknown(option: str, name: str, inputs: Sequence[str]) -> str:
    """What is said of a name that is no input."""
    shown = listing(inputs, 10) or "none"
    return f"{option}: the model has no input {printable(name, 80)}; its inputs are {shown}"


def user_inputs(options: argparse.Namespace, strict: bool = True, shared: bool = False) -> UserInputs:
    """What `options` say about inputs. Raises UsageError and CompileError."""
    return UserInputs(
        tuple(parse_shape(s) for s in options.shape),
        parsed("--value", options.value),
        tensors_of(Path(options.data)) if options.data else {},
        parsed("--constant", options.constant),
        tuple(options.train),
        tuple(options.freeze),
        strict,
        shared,
    )


def parsed(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Numbers by name, from NAME=NUMBERS, as tensors where a type is given. Raises UsageError."""
    return {name: typed(array, kind) for name, (array, kind) in read_numbers(option, texts).items()}


def typed(array: np.ndarray, kind: str) -> Any:
    """An array, or a tensor where there is a type."""
    if not kind:
        return array
    import torch

    return torch.from_numpy(array).to(dtype_of(kind))


def read_numbers(option: str, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, str]]:
    """Arrays by name with the type that is asked for, or ''. Raises UsageError."""
    result: dict[str, tuple[np.ndarray, str]] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        if not equals or not name:
            raise UsageError(f"{option} {printable(text, 80)}: expected name=1,2,3 or name=[[1,2],[3,4]]")
        if name in result:
            raise UsageError(f"{option}: {printable(name, 80)} is given twice")
        result[name] = array_of(option, text, numbers)
    return result


def array_of(option: str, text: str, numbers: str) -> tuple[np.ndarray, str]:
    """The array that NUMBERS, with or without :dtype, spell, and that type; a single number has no axes."""
    numbers, colon, kind = numbers.partition(":")
    if colon and kind not in DTYPES:
        raise UsageError(f"{option} {printable(text, 80)}: unknown dtype; one of {', '.join(DTYPES)}")
    try:
        if numbers.lstrip().startswith("["):
            array = np.asarray(json.loads(numbers))
        else:
            items = [number(part) for part in numbers.split(",")]
            array = np.asarray(items if "," in numbers else items[0])
    except (ValueError, RecursionError, OverflowError):
        array = np.asarray("")
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{option} {printable(text, 80)}: these are no numbers, or lists of different lengths")
    return array, kind


def number(text: str) -> bool | int | float:
    """One number, or true or false. Raises ValueError."""
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        return float(word)


def as_argument(value: Any, default: torch.dtype, shape: Shape | None) -> Tensor:
    """A module's argument: floating-point numbers in the model's own type, in the sizes of `shape` if there is one."""
    import torch
    from torch import Tensor

    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, order="C"))
    if tensor.is_floating_point() and not (isinstance(value, Tensor)):
        tensor = tensor.to(default)
    if shape is None:
        return tensor
    if tensor.numel() == 1:
        tensor = tensor.reshape(()).expand(shape.sizes).clone()
    if list(tensor.shape) != list(shape.sizes):
        try:
            tensor = tensor.reshape(shape.sizes)
        except RuntimeError:
            sizes = f"{tensor.numel()} numbers for the sizes {list(shape.sizes)}"
            raise UsageError(f"--shape {printable(shape.name, 80)}: {sizes}") from None
    return tensor.to(shape.dtype) if shape.dtype else tensor
