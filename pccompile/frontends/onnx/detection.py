"""Operators of object detection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, as_host

Array = np.ndarray[Any, Any]


@operator("NonMaxSuppression")
def non_max_suppression(
    node: Node,
    boxes: Host,
    scores: Host,
    most: Host | None = None,
    overlap: Host | None = None,
    least: Host | None = None,
) -> Tensor:
    """(batch, class, box) of the boxes that no better box of their class overlaps; which depends on the data."""
    limit = 0 if most is None else most.item()
    threshold = 0.0 if overlap is None else overlap.item()
    corners = corners_of(boxes.array, bool(node.get("center_point_box", 0)))
    chosen: list[tuple[int, int, int]] = []
    for batch, per_class in enumerate(scores.array):
        for kind, score in enumerate(per_class):
            order = np.argsort(-score, kind="stable")
            if least is not None:
                order = order[score[order] > least.item()]
            kept: list[int] = []
            for candidate in order:
                if len(kept) >= limit:
                    break
                if not kept or not (overlaps(corners[batch], candidate, kept) > threshold).any():
                    kept.append(int(candidate))
            chosen.extend((batch, kind, box) for box in kept)
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3)


def corners_of(boxes: Array, centred: bool) -> Array:
    """Boxes as their lower and upper corners, `[batch, box, 4]`, however they are given."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def overlaps(corners: Array, one: int, others: list[int]) -> Array:
    """Intersection over union of a box and others; 0 where a box is empty."""
    a, b = corners[one], corners[others]
    sides = np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    area, areas = np.prod(a[2:] - a[:2]), np.prod(b[:, 2:] - b[:, :2], axis=-1)
    union = area + areas - common
    valid = (common > 0) & (area > 0) & (areas > 0)
    return np.where(valid, common / np.where(valid, union, 1), 0)


@operator("RoiAlign")
def roi_align(node: Node, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """Each region of its image read on a grid and pooled, `[region, channel, height, width]`."""
    shifted = node.opset >= 16 and node.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    corners = rois * node.get("spatial_scale", 1.0) - (0.5 if shifted else 0.0)
    start, extent = corners[:, :2].flip(1), (corners[:, 2:] - corners[:, :2]).flip(1)
    if not shifted:
        extent = torch.clamp(extent, min=1.0)
    bins = (node.get("output_height", 1), node.get("output_width", 1))
    ratio = node.get("sampling_ratio", 0)
    if ratio > 0:
        return pooled(node, x, start, extent / torch.tensor(bins), batch, bins, (ratio, ratio))
    counts = np.ceil(as_host(extent, "the size of the regions of RoiAlign").array / np.array(bins))
    parts = [
        pooled(node, x, start[i : i + 1], extent[i : i + 1] / torch.tensor(bins), batch[i : i + 1], bins, tuple(count))
        for i, count in enumerate(np.maximum(counts, 1).astype(np.int64).tolist())
    ]
    return torch.cat(parts) if parts else x.new_zeros(0, x.shape[1], *bins)


def pooled(
    node: Node, x: Tensor, start: Tensor, step: Tensor, batch: Tensor, bins: tuple[int, int], counts: tuple[int, int]
) -> Tensor:
    """The mean, or the largest, of `counts` places in each bin; regions begin at `start`, bins are `step` wide."""
    places = [
        start[:, i : i + 1] + (torch.arange(bins[i] * counts[i], dtype=x.dtype) + 0.5) / counts[i] * step[:, i : i + 1]
        for i in (0, 1)
    ]
    corners = [
        c.unflatten(3, (bins[1], counts[1])).unflatten(2, (bins[0], counts[0])) for c in bilinear(x, batch, *places)
    ]
    if node.get("mode", "avg") == "avg":
        return torch.stack(corners).sum(0).mean((3, 5))
    return torch.stack(corners).amax((0, 4, 6))


def bilinear(x: Tensor, batch: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    """The four weighted corners around the places (y, z) of each region's image, 0 outside of it.

    y is `[region, row]`, z `[region, column]`; each result `[region, channel, row, column]`.
    """
    rows, columns = x.shape[2:]
    inside = ((y >= -1) & (y <= rows))[:, None, :, None] & ((z >= -1) & (z <= columns))[:, None, None, :]
    y, z = torch.clamp(y, 0, rows - 1), torch.clamp(z, 0, columns - 1)
    top, left = torch.floor(y).to(torch.int64), torch.floor(z).to(torch.int64)
    bottom, right = torch.clamp(top + 1, max=rows - 1), torch.clamp(left + 1, max=columns - 1)
    down, across = (y - top)[:, None, :, None], (z - left)[:, None, None, :]
    image = batch.to(torch.int64)[:, None, None]
    return [
        x[image, :, r[:, :, None], c[:, None, :]].movedim(-1, 1) * weight * inside
        for r, c, weight in (
            (top, left, (1 - down) * (1 - across)),
            (top, right, (1 - down) * across),
            (bottom, left, down * (1 - across)),
            (bottom, right, down * across),
        )
    ]
