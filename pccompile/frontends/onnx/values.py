"""What flows along an ONNX edge while a graph runs: tensors, and numbers that are known on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError

NAMES = ("float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
         "complex64", "complex128")  # fmt: skip
"""What ONNX and torch call element types alike."""
DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    **{onnx.TensorProto.DataType.Value(name.upper()): getattr(torch, name) for name in NAMES},
}
"""The element types that torch computes with."""

TEXT: int = onnx.TensorProto.STRING
NARROW: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT8E4M3FN: torch.float32,
    onnx.TensorProto.FLOAT8E4M3FNUZ: torch.float32,
    onnx.TensorProto.FLOAT8E5M2: torch.float32,
    onnx.TensorProto.FLOAT8E5M2FNUZ: torch.float32,
    onnx.TensorProto.FLOAT8E8M0: torch.float32,
    onnx.TensorProto.FLOAT4E2M1: torch.float32,
    onnx.TensorProto.INT4: torch.int8,
    onnx.TensorProto.UINT4: torch.uint8,
    onnx.TensorProto.INT2: torch.int8,
    onnx.TensorProto.UINT2: torch.uint8,
}
"""The element types of at most 8 bits that torch does not compute with, and the type that holds their numbers."""

HOST_LIMIT = 4096
"""Values with more elements than this are computed as tensors even where the host could."""

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
Number: TypeAlias = "int | float | bool | torch.SymInt | torch.SymFloat"


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """Numbers known while the graph is traced: constants, shapes, and what is computed from them.

    `array` holds plain numbers, or objects where a size is symbolic. `tensor` is a buffer with the same contents, where
    the module keeps one.
    """

    array: np.ndarray[Any, Any]
    dtype: torch.dtype
    tensor: Tensor | None = None

    @property
    def symbolic(self) -> bool:
        """Whether any element is a symbolic size."""
        return self.array.dtype == object and any(isinstance(x, SYMBOLIC) for x in self.array.flat)

    def tolist(self) -> list[Any]:
        """The elements in row-major order, plain Python numbers or symbolic ones."""
        if self.array.dtype == object:
            return list(self.array.flat)
        if self.dtype is torch.bfloat16:
            return [float(x) for x in self.array.flat]
        items: list[Any] = self.array.reshape(-1).tolist()
        return items

    def item(self) -> Any:
        """The only element."""
        items = self.tolist()
        if len(items) != 1:
            raise CompileError(f"a single number is expected, {len(items)} are given")
        return items[0]

    def to(self, dtype: torch.dtype) -> Host:
        """The same numbers with another type."""
        return Host(compact(self.array, dtype), dtype)

    def as_tensor(self) -> Tensor:
        """The same numbers as a tensor; symbolic sizes become scalar tensors, never `.item()`."""
        if self.tensor is not None:
            return self.tensor
        if self.symbolic:
            parts = [torch.scalar_tensor(x, dtype=self.dtype) for x in self.array.flat]
            return torch.stack(parts).reshape(self.array.shape)
        return tensor_of(self.array, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class StringArray:
    """An array of strings."""

    array: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class LowPrecision:
    """Numbers of an element type that torch does not compute with, held in a wider one.

    `code` is ONNX's number of the element type, `tensor` has the type that `NARROW` names for it.
    """

    tensor: Tensor
    code: int

    def numpy(self) -> np.ndarray[Any, Any]:
        """The numbers as an array of their own element type."""
        return self.tensor.detach().numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(self.code))


Value: TypeAlias = "Tensor | Host | StringArray | LowPrecision | list[Any] | None"
Operand: TypeAlias = "Tensor | int | float"


NOTED: ContextVar[Callable[[Callable[[], Tensor]], Tensor] | None] = ContextVar("NOTED", default=None)
"""What is told of tensors that are made of several numbers, and may put others in their place."""


def tensor_of(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """A tensor with a copy of the numbers in `array`."""
    make, noted = partial(_copied, array, dtype), NOTED.get()
    return make() if noted is None or array.size < 2 else noted(make)


def _copied(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    if array.dtype == object:
        return torch.tensor(array.tolist(), dtype=dtype)
    if dtype is torch.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(dtype)
    return torch.from_numpy(np.array(array, order="C"))


def stored(array: np.ndarray[Any, Any], code: int) -> Host | StringArray | LowPrecision:
    """An array of ONNX's element type `code` as a value."""
    if code == TEXT:
        return text_of(array)
    if code in NARROW:
        return LowPrecision(tensor_of(array.astype(NUMPY[NARROW[code]]), NARROW[code]), code)
    return Host(array, DTYPES[code])


def text_of(strings: Any) -> StringArray:
    """Strings, or an array of them or of UTF-8 bytes, as a value."""
    given = np.asarray(strings, dtype=object)
    array = np.empty(given.shape, dtype=object)
    array.reshape(-1)[:] = [s.decode("utf-8", "replace") if isinstance(s, bytes) else str(s) for s in given.flat]
    return StringArray(array)


def host_of(numbers: Any, dtype: torch.dtype = torch.int64) -> Host:
    """Numbers, nested lists or an array as a host value."""
    if isinstance(numbers, np.ndarray):
        return Host(compact(numbers, dtype), dtype)
    array = np.empty(len(numbers) if isinstance(numbers, (list, tuple)) else (), dtype=object)
    array[...] = numbers
    return Host(compact(array, dtype), dtype)


def compact(array: np.ndarray[Any, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """`array` with the element type that `dtype` names, or as objects where a number is symbolic."""
    if array.dtype == object and any(isinstance(x, SYMBOLIC) for x in array.flat):
        return array
    return array.astype(NUMPY.get(dtype, np.float32))


NUMPY: dict[torch.dtype, Any] = {
    dtype: np.dtype(str(dtype).removeprefix("torch.")).type for dtype in DTYPES.values() if dtype is not torch.bfloat16
}


def tracing(tensor: Tensor) -> bool:
    """Whether `tensor` stands for unknown numbers, so that they must not be read."""
    return (
        torch.compiler.is_exporting()
        or torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
    )


def as_host(value: Value, what: str) -> Host:
    """`value` as numbers on the host; refuses a traced tensor, whose numbers depend on the data."""
    if isinstance(value, Host):
        return value
    if not isinstance(value, Tensor):
        raise CompileError(f"{what} should be a tensor of numbers, it is {described(value)}")
    if tracing(value):
        raise CompileError(
            f"{what} depends on the data, so the graph has no fixed form",
            hint="make it a constant: --constant NAME=VALUE, or load_onnx(..., constants={...}), fixes an input",
        )
    data = value.detach()
    return Host((data.float() if data.dtype is torch.bfloat16 else data).numpy(), value.dtype)


def as_tensor(value: Value) -> Tensor:
    """`value` as a tensor."""
    if isinstance(value, Host):
        return value.as_tensor()
    if isinstance(value, Tensor):
        return value
    raise CompileError(f"a tensor of numbers is expected, {described(value)} is given")


def described(value: Value) -> str:
    """A value in words, for error messages."""
    match value:
        case Tensor():
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        case Host():
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.array.shape)}"
        case StringArray():
            return f"text {list(value.array.shape)}"
        case LowPrecision():
            return f"{type_name(value.code)} {list(value.tensor.shape)}"
    return "nothing" if value is None else "a sequence"


def type_name(code: int) -> str:
    """An element type as ONNX spells it."""
    known: dict[int, str] = {v: k for k, v in onnx.TensorProto.DataType.items()}
    return known[code].lower() if code in known else f"element type {code}"


def as_operand(value: Value, rank: int) -> Operand:
    """`value` as a plain number where it is a known scalar beside a tensor of `rank` axes; else a tensor."""
    if isinstance(value, Host) and value.dtype.is_floating_point and value.array.size == 1 and value.array.ndim <= rank:
        number: float = value.item()
        return number
    return as_tensor(value)


def shape_of(tensor: Tensor) -> Host:
    """The shape of `tensor`, sizes that vary as symbols."""
    return host_of(list(tensor.shape))


def integers(host: Host) -> list[int]:
    """The elements of `host` as ints or symbolic ints."""
    return host.tolist()


def normal_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise CompileError(f"axis {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


def normal_axes(axes: Iterable[int] | None, rank: int) -> list[int]:
    """`axes` counted from the front; all of them where none are given."""
    return list(range(rank)) if axes is None else [normal_axis(a, rank) for a in axes]


def product(sizes: Sequence[Any]) -> Any:
    """The product of sizes, which may be symbolic."""
    result: Any = 1
    for size in sizes:
        result = result * size
    return result
