"""Shapes of results that torch tells only by running a kernel, told while operators are traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._library.simple_registry import singleton


def _like(x: Tensor, *rest: Any, **named: Any) -> Tensor:
    return torch.empty_like(x)


def _masked(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def _like_all(err: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in tensors[:3])


SHAPES: dict[str, Callable[..., Any]] = {
    "_sample_dirichlet": _like,
    "_dirichlet_grad": _like,
    "_standard_gamma_grad": _like,
    "fake_quantize_per_tensor_affine_cachemask": _masked,
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": _masked,
    "fake_quantize_per_channel_affine_cachemask": _masked,
    "_fake_quantize_learnable_per_tensor_affine": _like,
    "_fake_quantize_learnable_per_channel_affine": _like,
    "_fake_quantize_learnable_per_tensor_affine_backward": _like_all,
    "_fake_quantize_learnable_per_channel_affine_backward": _like_all,
}
"""By operator, what has the shape of its result."""


@contextmanager
def known_shapes(shapes: dict[str, Callable[..., Any]] = SHAPES) -> Iterator[None]:
    """Within: results of operators in `shapes` have a shape without a run of their kernels."""
    with ExitStack() as stack, torch.library._scoped_library("aten", "FRAGMENT") as library:
        for name, shape in shapes.items():
            holder = singleton.find(f"aten::{name}").fake_impl
            stack.callback(holder.register(shape, __name__, library).destroy)
        yield
