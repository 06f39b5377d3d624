"""How far two gradients, or two outputs, are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = {torch.float64: 2**16}
"""A difference of so many units of rounding of the largest gradient is none (256 where nothing is said): some gradients
are 0 up to rounding, as sums of a hundred thousand terms that cancel. In float64 that is 1.5e-11 of the largest."""
BLOCK, GLANCED = 2**15, 2**17
"""How many entries are compared at once, and how many at a glance: what stays in the cache."""
SMALL = 1e-12
"""The squares of norms below it may vanish in float32."""


@dataclass(frozen=True)
class Difference:
    """One tensor against what it should be.

    relative_error is ‖a − b‖ / ‖b‖ (0 where both are 0), cosine that of the angle between them, max_abs the largest
    difference of two entries, norm is ‖b‖. `agrees` is None where the two are not expected to be equal.
    """

    name: str
    relative_error: float
    cosine: float
    max_abs: float
    norm: float
    agrees: bool | None = None
    note: str = ""

    @property
    def error(self) -> float:
        """The relative error; what is no number, which no comparison orders, is the worst of all."""
        return math.inf if math.isnan(self.relative_error) else self.relative_error


@dataclass(frozen=True)
class Checked:
    """What a self-check compared: how many outputs and gradients, and the worst relative difference.

    zero: those whose gradient is 0 on the example, in eager torch and here, which says little about other inputs.
    notes: what was not compared, and what a reader must know.
    """

    outputs: int = 0
    gradients: int = 0
    worst: float = 0.0
    zero: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.outputs:
            return "not compared with eager torch"
        what = f"outputs ({self.outputs}) and gradients ({self.gradients}) are eager torch's on the example"
        return f"{what}, within {self.worst:.2g}"


def difference(name: str, found: Tensor | None, expected: Tensor | None, enough: float = 0.0) -> Difference:
    """`found` against `expected`; None stands for no gradient at all, which only None equals.

    enough: where sums in the tensors' own precision show a relative error of no more, they are not taken again in
    float64; the result has no cosine then, and ‖a − b‖ as a bound in place of the largest difference.
    """
    if found is None or expected is None:
        missing = (found is None) != (expected is None)
        note = "none in either" if not missing else "missing" if found is None else "should be missing"
        wrong = math.inf if missing else 0.0
        return Difference(name, wrong, math.nan, wrong, 0.0, note=note)
    a, b = _flat(found), _flat(expected)
    if a.shape != b.shape:
        note = f"{list(found.shape)} for {list(expected.shape)}"
        return Difference(name, math.inf, math.nan, math.inf, _Sums(b, b).norm, note=note)
    if enough:
        distance, norm = _glance(a, b)
        if norm > SMALL and distance <= enough * norm < math.inf:
            return Difference(name, distance / norm, math.nan, distance, norm)
    note, sums = "", _Sums(a, b)
    if not (math.isfinite(sums.error) and math.isfinite(sums.norm)):
        a, b = a.double(), b.double()
        finite = b.isfinite()
        note = "" if bool(finite.all()) else "not finite in the reference"
        agreed = ~finite & ((a == b) | (a.isnan() & b.isnan()))
        sums = _Sums(a.masked_fill(agreed, 0), b.masked_fill(agreed, 0))
    error, norm = sums.error, sums.norm
    relative = (error / norm if norm else 0.0 if error == 0 else math.inf) if math.isfinite(error) else math.inf
    product = sums.size * norm
    cosine = sums.product / product if product else math.nan
    return Difference(name, relative, cosine, sums.max_abs, norm, note=note)


class _Sums:
    """Norms of `a`, `b` and a − b, a · b and the largest |a − b|, in float64.

    Blocks stay in the cache: whole tensors in float64 would take three times as long as what is computed of them.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        size, norm, error, product, largest = [0.0], [0.0], [0.0], [0.0], [0.0]
        for part, other in zip(a.split(BLOCK), b.split(BLOCK), strict=True):
            x, y = part.double(), other.double()
            delta = x - y
            size.append(_norm(x))
            norm.append(_norm(y))
            error.append(_norm(delta))
            product.append(float(torch.dot(x, y)))
            largest.append(float(delta.abs_().max()) if delta.numel() else 0.0)
        self.size, self.norm, self.error = math.hypot(*size), math.hypot(*norm), math.hypot(*error)
        self.product = sum(product)
        self.max_abs = math.nan if any(map(math.isnan, largest)) else max(largest)


def _glance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """‖a − b‖ and ‖b‖, in the precision of `a` and `b`, which is float32 at least."""
    distance, norm = [0.0], [0.0]
    for x, y in zip(a.split(GLANCED), b.split(GLANCED), strict=True):
        x, y = (x, y) if x.dtype in (torch.float32, torch.float64) else (x.float(), y.float())
        distance.append(0.0 if x.data_ptr() == y.data_ptr() else _norm(x - y))
        norm.append(_norm(y))
    return math.hypot(*distance), math.hypot(*norm)


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.cpu().reshape(-1)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def differences(found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> list[Difference]:
    """Each gradient of `found` against the one of the same name in `expected`."""
    return [difference(name, found.get(name), e) for name, e in expected.items()]


def agrees(d: Difference, tolerance: float, largest: float, dtype: torch.dtype) -> bool:
    """Whether a difference is within the relative `tolerance`, or within rounding of the `largest` norm around."""
    return d.relative_error <= tolerance or (nothing(d, largest, dtype) and d.max_abs <= floor(largest, dtype))


def nothing(d: Difference, largest: float, dtype: torch.dtype) -> bool:
    """Whether a gradient is 0 but for rounding, as that of a bias in front of a normalisation."""
    return 0 <= d.norm <= floor(largest, dtype) and math.isfinite(d.max_abs)


def floor(largest: float, dtype: torch.dtype) -> float:
    """What rounding leaves where sums as large as `largest` cancel."""
    return ROUNDING.get(dtype, 256) * torch.finfo(dtype).eps * largest
