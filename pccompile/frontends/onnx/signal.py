"""Fourier transforms and windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, normal_axis


def as_complex(x: Tensor) -> Tensor:
    """`[..., 1]` real or `[..., 2]` complex numbers as torch's complex type, or as real ones."""
    result: Tensor = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    return result


@operator("DFT")
def discrete_fourier_transform(node: Node, x: Tensor, length: Host | None = None, axis: Host | None = None) -> Tensor:
    """The transform of x along an axis, its last axis holding real and imaginary parts."""
    along = axis.item() if axis is not None else node.get("axis", 1 if node.opset < 20 else -2)
    along = normal_axis(along, x.dim())
    size = None if length is None else length.item()
    onesided, inverse = bool(node.get("onesided", 0)), bool(node.get("inverse", 0))
    source = as_complex(x)
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(source, size, along)
        return real.unsqueeze(-1)
    if inverse:
        return torch.view_as_real(torch.fft.ifft(source, size, along))
    if onesided:
        return torch.view_as_real(torch.fft.rfft(source.real if source.is_complex() else source, size, along))
    return torch.view_as_real(torch.fft.fft(source, size, along))


@operator("STFT")
def short_time_fourier_transform(
    node: Node, x: Tensor, step: Host, window: Tensor | None = None, length: Host | None = None
) -> Tensor:
    """The transforms of overlapping frames, as `[batch, frame, frequency, 2]`."""
    size = length.item() if length is not None else window.shape[0] if window is not None else x.shape[1]
    signal = as_complex(x) if x.dim() == 3 else x
    frames = signal.unfold(1, size, step.item())
    frames = frames if window is None else frames * window
    if node.get("onesided", 1) and not frames.is_complex():
        return torch.view_as_real(torch.fft.rfft(frames))
    return torch.view_as_real(torch.fft.fft(frames))


@operator("HannWindow", "HammingWindow", "BlackmanWindow")
def window(node: Node, size: Host) -> Any:
    """A window function, periodic or symmetric."""
    count, periodic = size.item(), bool(node.get("periodic", 1))
    dtype = node.element_type("output_datatype")
    steps = torch.arange(count, dtype=torch.float64) * (2 * torch.pi / (count if periodic else count - 1))
    if node.op_type == "HannWindow":
        values = 0.5 - 0.5 * torch.cos(steps)
    elif node.op_type == "HammingWindow":
        values = 25 / 46 - 21 / 46 * torch.cos(steps)
    else:
        values = 0.42 - 0.5 * torch.cos(steps) + 0.08 * torch.cos(2 * steps)
    return values.to(dtype)


@operator("MelWeightMatrix")
def mel_weight_matrix(node: Node, bins: Host, length: Host, rate: Host, low: Host, high: Host) -> Tensor:
    """Triangles over the frequencies of a transform, evenly spaced on the mel scale, as `[frequency, bin]`."""
    count, size = bins.item(), length.item()
    first, last = (2595 * math.log10(1 + edge.item() / 700) for edge in (low, high))
    mels = first + torch.arange(count + 2, dtype=torch.float64) * ((last - first) / (count + 2))
    corners = torch.floor((size + 1) * 700 * (10 ** (mels / 2595) - 1) / rate.item())
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    place = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(centre > left, (place - left) / (centre - left).clamp(min=1), 1.0)
    falling = (right - place) / (right - centre).clamp(min=1)
    weights = torch.where((place >= left) & (place <= centre), rising, 0.0)
    weights = torch.where((place >= centre) & (place < right), falling, weights)
    return weights.to(node.element_type("output_datatype"))
