"""Resizing by interpolation.

What torch's `interpolate` does is left to it. Everything else is separable: along each axis a matrix of weights, which
the host computes from the sizes, is multiplied on, or rows are picked where each output reads one input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, normal_axis
from pccompile.limits import spend

Array = np.ndarray[Any, Any]
TORCH_MODES = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}


@operator("Resize")
def resize(
    node: Node, x: Tensor, roi: Host | None = None, scales: Host | None = None, sizes: Host | None = None
) -> Tensor:
    """x with other sizes along some axes."""
    if node.opset < 11:  # the scales were the second input, and the coordinates asymmetric
        return resized(node, x, range(x.dim()), roi.tolist() if roi else None, None, None, "asymmetric", "floor")
    axes = [normal_axis(a, x.dim()) for a in node.get("axes") or range(x.dim())]
    factors = scales.tolist() if scales is not None and scales.array.size else None
    wanted = sizes.tolist() if sizes is not None and sizes.array.size else None
    region = roi.tolist() if roi is not None and roi.array.size else None
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    return resized(node, x, axes, factors, wanted, region, coordinates, node.get("nearest_mode", "round_prefer_floor"))


@operator("Upsample")
def upsample(node: Node, x: Tensor, scales: Host | None = None) -> Tensor:
    """x enlarged; the form of Resize up to opset 9."""
    factors = node.get("scales") if scales is None else scales.tolist()
    return resized(node, x, range(x.dim()), factors, None, None, "asymmetric", "floor")


def resized(
    node: Node,
    x: Tensor,
    axes: Any,
    factors: list[Any] | None,
    wanted: list[Any] | None,
    region: list[float] | None,
    coordinates: str,
    rounding: str,
) -> Tensor:
    """x with its `axes` scaled by `factors` or brought to `wanted` sizes."""
    axes = list(axes)
    if wanted is not None:
        factors, wanted = fitted(node, x, axes, wanted)
    elif factors is None:
        raise CompileError("Resize has neither scales nor sizes", node.location)
    else:
        wanted = [x.shape[a] if f == 1 else math.floor(x.shape[a] * f) for a, f in zip(axes, factors, strict=True)]
    moved = [i for i, a in enumerate(axes) if region or not (is_one(factors[i]) and same(wanted[i], x.shape[a]))]
    whole = {axes[i]: (wanted[i], factors[i]) for i in moved}
    done = by_torch(node, x, whole, coordinates, rounding)
    if done is not None:
        return done
    for i in moved:
        corners = (region[i], region[i + len(axes)]) if region is not None else (0.0, 1.0)
        x = along_axis(node, x, axes[i], int(wanted[i]), float(factors[i]), corners, coordinates, rounding)
    return x


def is_one(factor: Any) -> bool:
    """Whether a scale leaves an axis alone."""
    return isinstance(factor, (int, float)) and math.isclose(factor, 1.0)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same, symbols compared as such."""
    return a is b or bool(a == b)


def fitted(node: Node, x: Tensor, axes: list[int], wanted: list[Any]) -> tuple[list[Any], list[Any]]:
    """Scales and sizes under the node's policy on the aspect ratio."""
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    factors = [1.0 if same(w, x.shape[a]) else w / x.shape[a] for w, a in zip(wanted, axes, strict=True)]
    if policy == "stretch":
        return factors, wanted
    scale = min(factors) if policy == "not_larger" else max(factors)
    return [scale] * len(axes), [int(scale * x.shape[a] + 0.5) for a in axes]


def by_torch(
    node: Node, x: Tensor, whole: dict[int, tuple[Any, Any]], coordinates: str, rounding: str
) -> Tensor | None:
    """The result of torch's `interpolate`, where it means the same."""
    mode = node.get("mode", "nearest")
    sizes = [whole.get(a, (x.shape[a], 1.0))[0] for a in range(2, x.dim())]
    if not 3 <= x.dim() <= 5 or any(a < 2 for a in whole) or not x.dtype.is_floating_point:
        return None
    if any(not isinstance(f, (int, float)) or not isinstance(w, int) for w, f in whole.values()):
        return None
    exact = all(math.isclose(w, x.shape[a] * f, rel_tol=1e-6) for a, (w, f) in whole.items())
    if mode == "nearest":
        fits = coordinates == "asymmetric" and rounding == "floor"
        half = coordinates == "half_pixel" and rounding == "round_prefer_floor"
        integral = all(float(f).is_integer() for _, f in whole.values())
        return F.interpolate(x, sizes, mode="nearest") if exact and integral and (fits or half) else None
    if (mode, x.dim()) not in TORCH_MODES or node.get("exclude_outside", 0) or not exact:
        return None
    if mode == "cubic" and node.get("cubic_coeff_a", -0.75) != -0.75:
        return None
    corners = coordinates == "align_corners"
    if not corners and coordinates != "half_pixel" and not (coordinates == "pytorch_half_pixel" and 1 not in sizes):
        return None
    if node.get("antialias", 0):
        return None
    return F.interpolate(x, sizes, mode=TORCH_MODES[mode, x.dim()], align_corners=corners)


def along_axis(
    node: Node,
    x: Tensor,
    axis: int,
    size: int,
    factor: float,
    corners: tuple[float, float],
    coordinates: str,
    rounding: str,
) -> Tensor:
    """x interpolated along one axis."""
    length = int(x.shape[axis])
    places, outside = source_places(length, size, factor, corners, coordinates)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        index = np.clip(ROUND[rounding](places), 0, length - 1).astype(np.int64)
        y = x.index_select(axis, torch.from_numpy(index))
    else:
        kernel = linear if mode == "linear" else cubic(node.get("cubic_coeff_a", -0.75))
        spread = min(factor, 1.0) if node.get("antialias", 0) else 1.0
        reach = 1 if mode == "linear" else 2
        matrix = torch.from_numpy(weights(places, length, kernel, reach, spread, bool(node.get("exclude_outside", 0))))
        exact = x if x.dtype.is_floating_point else x.to(torch.float32)
        y = torch.matmul(exact.movedim(axis, -1), matrix.t().to(exact.dtype)).movedim(-1, axis)
        y = y if x.dtype.is_floating_point else y.to(x.dtype)
    if outside.any():
        shape = [-1 if a == axis else 1 for a in range(x.dim())]
        y = torch.where(torch.from_numpy(outside).reshape(shape), node.get("extrapolation_value", 0.0), y)
    return y


ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def source_places(
    length: int, size: int, factor: float, corners: tuple[float, float], coordinates: str
) -> tuple[Array, Array]:
    """Where each output lies on the input's axis, and which of them lie outside and take the extrapolation value."""
    spend("memory", 32 * size, "Resize")
    y = np.arange(size, dtype=np.float64)
    full = factor * length
    outside = np.zeros(size, dtype=bool)
    match coordinates:
        case "align_corners":
            places = y * (length - 1) / (full - 1) if full != 1 else np.zeros(size)
        case "asymmetric":
            places = y / factor
        case "half_pixel" | "pytorch_half_pixel":
            places = (y + 0.5) / factor - 0.5
            if coordinates == "pytorch_half_pixel" and full == 1:
                places = np.full(size, -0.5)
        case "half_pixel_symmetric":
            places = length / 2 * (1 - size / full) + (y + 0.5) / factor - 0.5
        case "tf_crop_and_resize":
            width = (corners[1] - corners[0]) * (length - 1)
            places = (y * width / (full - 1) if full != 1 else np.full(size, width / 2)) + corners[0] * (length - 1)
            outside = (places < 0) | (places > length - 1)
        case _:
            raise CompileError(f"Resize has no coordinate transformation called {coordinates}")
    return places, outside


def linear(distance: Array) -> Array:
    """The triangle."""
    return np.asarray(np.clip(1 - np.abs(distance), 0, None))


def cubic(a: float) -> Callable[[Array], Array]:
    """Keys' cubic convolution kernel (1981, doi:10.1109/TASSP.1981.1163711)."""

    def kernel(distance: Array) -> Array:
        d = np.abs(distance)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))

    return kernel


def weights(
    places: Array, length: int, kernel: Callable[[Array], Array], reach: int, spread: float, exclude: bool
) -> Array:
    """The matrix `[output, input]` of interpolation weights; what lies outside falls to the edges, or is left out."""
    radius = math.ceil(reach / spread) + 1
    spend("memory", 8 * max(len(places), 1) * (length + 8 * radius), "Resize")
    offsets = np.arange(-radius, radius + 1)
    sources = np.floor(places)[:, None] + offsets
    parts = kernel((sources - places[:, None]) * spread)
    if exclude:
        parts = np.where((sources < 0) | (sources >= length), 0.0, parts)
    if exclude or spread != 1.0:
        parts = parts / parts.sum(1, keepdims=True)
    matrix = np.zeros((len(places), length))
    rows = np.repeat(np.arange(len(places)), len(offsets))
    np.add.at(matrix, (rows, np.clip(sources, 0, length - 1).astype(np.int64).reshape(-1)), parts.reshape(-1))
    return matrix
