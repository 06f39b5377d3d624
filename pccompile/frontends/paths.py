"""The path that Python takes through forward: the values that it reads from tensors, noted and given back.

A model is run once as it is, which notes them in their order. torch.export, which has no numbers, then traces it with
each of them in its place, and the tensors that were read become results of the program, to be compared at each call.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pccompile.diagnostics import CaptureError, Location

OWN = tuple(f"{Path(p).parent}/" for p in (Path(__file__).parent, torch.__file__))
"""Where code stands that is none of the model's."""
READERS: dict[Any, str] = {
    Tensor.__bool__: "bool",
    torch.is_nonzero: "bool",
    Tensor.is_nonzero: "bool",
    Tensor.__int__: "int",
    Tensor.__index__: "int",
    Tensor.__float__: "float",
    Tensor.item: "item",
    Tensor.tolist: "tolist",
    torch.equal: "equal",
    Tensor.equal: "equal",
    torch.allclose: "allclose",
    Tensor.allclose: "allclose",
}
"""What hands numbers in tensors to Python, and what of them."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What Python read: the entries of a tensor in their order, which reader was asked, and where."""

    values: tuple[bool | int | float, ...]
    reader: str
    where: Location

    def __eq__(self, other: object) -> bool:
        """Whether the same was read at the same place: 0.0 is not -0.0, by which Python may decide."""
        return isinstance(other, Reading) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash((self.values, self.reader, self.where))

    @property
    def measured(self) -> bool:
        """Whether a number was read that is no count, of which there are as many as calls."""
        return any(isinstance(v, float) for v in self.values)


class Noted(TorchFunctionMode):
    """Within, what Python reads is noted in `readings`. Raises CaptureError for what no program can compare."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[Reading] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of a call, noted where it is a reading."""
        result = func(*args, **(kwargs or {}))
        if reader := READERS.get(func):
            where = _caller()
            found = _read(reader, args, kwargs or {}).reshape(-1).tolist()
            if any(isinstance(v, complex) or math.isnan(v) or math.isinf(v) for v in found):
                raise CaptureError("Python reads a complex number, or one that is not finite", where, "check it first")
            self.readings.append(Reading(tuple(found), reader, where))
        return result


class Replayed(TorchFunctionMode):
    """Within a trace, Python reads the numbers of a path; `tensors` are those that it would have read them from."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        super().__init__()
        self.readings, self.tensors = readings, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of a call; that of a reading is the one that was noted. Raises CaptureError on another path."""
        if (reader := READERS.get(func)) is None:
            return func(*args, **(kwargs or {}))
        where, position = _caller(), len(self.tensors)
        if position >= len(self.readings) or self.readings[position].reader != reader:
            raise CaptureError("forward reads other values while it is traced than when it runs", where, HINT)
        reading, tensor = self.readings[position], _read(reader, args, kwargs or {})
        if tensor.numel() != len(reading.values):
            raise CaptureError("forward reads tensors of other lengths while it is traced", where, HINT)
        self.tensors.append(tensor.detach().clone())  # what is written there later was not read
        return _result(reader, reading.values, list(tensor.shape))

    def finish(self) -> None:
        """Raise CaptureError where readings are left over."""
        if len(self.tensors) != len(self.readings):
            where = self.readings[len(self.tensors)].where
            raise CaptureError("forward does not read while it is traced what it reads when it runs", where, HINT)


HINT = "pass the number as an argument, or read it outside the model"


def _read(reader: str, args: Any, kwargs: Any) -> Tensor:
    """The tensor whose entries Python is given."""
    if reader == "equal":
        first, second = _pair(args, kwargs)
        same = first.shape == second.shape
        return (first == second).all() if same else torch.tensor(False)
    if reader == "allclose":
        return torch.isclose(*args, **kwargs).all()
    tensor: Tensor = args[0] if args else kwargs.get("input", kwargs.get("self"))
    if reader == "bool" and tensor.dtype is not torch.bool:
        return tensor != 0
    return tensor.long() if reader == "int" else tensor.double() if reader == "float" else tensor


def _pair(args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    given: list[Tensor] = [*args, *(kwargs[k] for k in ("input", "other") if k in kwargs)]
    return given[0], given[1]


def _result(reader: str, values: tuple[Any, ...], shape: list[int]) -> Any:
    """What a reader returns for these entries of a tensor of this shape."""
    if reader != "tolist":
        return values[0]
    nested: Any = list(values)
    for size in reversed(shape[1:]):
        nested = [nested[i : i + size] for i in range(0, len(nested), size)] if size else []
    return nested if shape else nested[0]


def _caller() -> Location:
    """The line of the model that reads."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    return Location(file=Path(frame.f_code.co_filename).name, line=frame.f_lineno)


def path_of(run: Callable[[], Any]) -> tuple[Reading, ...]:
    """What Python reads while `run` runs. Raises what that raises, and CaptureError for what cannot be compared."""
    with Noted() as noted:
        run()
    return tuple(noted.readings)
