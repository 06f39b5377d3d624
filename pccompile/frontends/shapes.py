"""Shapes that torch cannot tell without numbers, told while a model is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pccompile.frontends.process import replaced
from pccompile.ops.shapes import SHAPES, known_shapes


def _ctc_loss(log_probs: Tensor, targets: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What `aten::_ctc_loss` returns; the second result is as long as the longest target, here as the longest can be.

    Only torch's own kernel for the gradient reads that one.
    """
    steps, count, _ = log_probs.shape
    return log_probs.new_empty(count), log_probs.new_empty(count, steps, 2 * targets.shape[-1] + 1)


@contextmanager
def shapes_torch_lacks() -> Iterator[None]:
    """Within: operators have a shape without a run of their kernels, and the CTC loss takes its lengths as tensors."""
    original = torch.ctc_loss

    def with_tensors(x: Tensor, targets: Tensor, lengths: Any, target_lengths: Any, *rest: Any, **named: Any) -> Tensor:
        return original(x, targets, _tensor(lengths), _tensor(target_lengths), *rest, **named)

    with known_shapes(SHAPES | {"_ctc_loss.Tensor": _ctc_loss}), replaced(torch, ctc_loss=with_tensors):
        yield


def _tensor(lengths: Any) -> Tensor:
    return lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, dtype=torch.long)
