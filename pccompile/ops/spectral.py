"""Complex views and Fourier transforms: linear, so that the message is the transform back without its scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.ir import Arg, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.linear import axis
from pccompile.ops.registry import define, normal, rewrite
from pccompile.ops.trace import decompose

TypeOf = Callable[[Ref], TensorType]
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128, torch.float16: torch.complex32}
REAL = {c: r for r, c in COMPLEX.items()}


class _Unasked(TorchDispatchMode):
    """Within: torch does not look whether a window is 0 somewhere, which it refuses; the result is infinite there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return False if func is torch.ops.aten.equal.default else func(*args, **(kwargs or {}))


rewrite("aten.istft.default", lambda b, n: decompose(b, n, within=_Unasked))


def _real(b: Builder, x: Ref) -> Ref:
    return b("aten.select.int", b("aten.view_as_real.default", x), -1, 0)


def _halved(args: Mapping[str, Arg], type_of: TypeOf) -> TensorType:
    x, dims = type_of(args["self"]), args["dim"]
    shape = list(x.shape)
    if args["onesided"]:
        last = dims[-1]
        shape[last] = shape[last] // 2 + 1
    return TensorType(tuple(shape), COMPLEX[x.dtype])


def _whole(args: Mapping[str, Arg], type_of: TypeOf) -> TensorType:
    x, dims = type_of(args["self"]), args["dim"]
    shape = list(x.shape)
    shape[dims[-1]] = args["last_dim_size"]
    return TensorType(tuple(shape), REAL[x.dtype])


def _from_real(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    """Half a spectrum is filled up with zeros, since what it leaves out was not sent on."""
    dims: Any = n["dim"]
    shape = b.shape(n["self"])
    if n["onesided"]:
        last = axis(dims[-1], len(shape))
        behind: Any = shape[last] - b.shape(e)[last]
        e = b("aten.constant_pad_nd.default", e, (*(0, 0) * (len(shape) - 1 - last), 0, behind), 0)
    return {"self": _real(b, b("aten._fft_c2c.default", e, dims, n["normalization"], False))}


def _to_real(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    """All but the first entry, and the middle one of an even length, stand for two of the full spectrum."""
    dims: Any = n["dim"]
    last = axis(dims[-1], len(b.shape(e)))
    half = b("aten._fft_r2c.default", e, dims, n["normalization"], True)
    size: Any = b.shape(half)[last]
    twice = b.shape(e)[last] - size
    first, middle = (b("aten.slice.Tensor", half, last, *ends) for ends in ((0, 1), (1, 1 + twice)))
    rest = b("aten.slice.Tensor", half, last, 1 + twice, size)
    return {"self": b("aten.cat.default", (first, b.mul(middle, 2), rest), last)}


define(
    "aten._fft_c2c.default",
    "linear",
    lambda b, n, e: {"self": b("aten._fft_c2c.default", e, n["dim"], n["normalization"], not n["forward"])},
    infer=lambda args, type_of: type_of(args["self"]),
    samples=(lambda: (torch.complex(normal(4, 5), normal(4, 5)), (0, 1), 1, True),),
)
define(
    "aten._fft_r2c.default",
    "linear",
    _from_real,
    infer=_halved,
    samples=(
        lambda: (normal(4, 6), (1,), 0, True),
        lambda: (normal(5, 3), (1, 0), 2, True),
        lambda: (normal(4, 3), (0,), 1, False),
    ),
)
define(
    "aten._fft_c2r.default",
    "linear",
    _to_real,
    infer=_whole,
    samples=(
        lambda: (torch.complex(normal(4, 3), normal(4, 3)), (1,), 2, 5),
        lambda: (torch.complex(normal(3, 3), normal(3, 3)), (0,), 0, 4),
    ),
)
define(
    "aten.view_as_real.default",
    "linear",
    lambda b, n, e: {"self": b("aten.view_as_complex.default", e)},
    samples=(lambda: (torch.complex(normal(4, 3), normal(4, 3)),),),
    wiring=True,
)
define(
    "aten.view_as_complex.default",
    "linear",
    lambda b, n, e: {"self": b("aten.view_as_real.default", e)},
    spell="torch.view_as_complex(self.contiguous())",
    samples=(lambda: (normal(4, 3, 2),),),
    wiring=True,
)
