"""Gradients by plain autograd: what every predictive-coding form is compared with."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.case import Loss


def autograd_gradients(
    module: nn.Module, inputs: tuple[Tensor, ...], loss: Loss, target: Tensor
) -> tuple[Any, Tensor, dict[str, Tensor | None], tuple[Tensor | None, ...]]:
    """The output, the loss, the gradient of each parameter by name, and that of each input.

    None stands for what no path reaches, for frozen parameters and for inputs that are not floating. A tied parameter
    is listed once, under the first of its names. Neither `.grad` nor the caller's inputs change; buffers do, as in any
    forward pass.
    """
    leaves = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)
    output = module(*(_writable(leaf) for leaf in leaves))
    value = loss(output, target)
    names = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    found = _gradients(value, (*names.values(), *(leaf for leaf in leaves if leaf.requires_grad)))
    gradients = {name: found.pop(0) if name in names else None for name, _ in module.named_parameters()}
    return output, value.detach(), gradients, tuple(found.pop(0) if leaf.requires_grad else None for leaf in leaves)


def _gradients(value: Tensor, wanted: tuple[Tensor, ...]) -> list[Tensor | None]:
    if not wanted or not value.requires_grad:
        return [None] * len(wanted)
    return list(torch.autograd.grad(value, wanted, allow_unused=True))


def _writable(leaf: Tensor) -> Tensor:
    """A copy with the same strides that is no leaf, so that a model may write into its own input."""
    if any(stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape, strict=True)):
        return leaf  # an expanded tensor cannot be written to
    empty = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return empty.copy_(leaf)
