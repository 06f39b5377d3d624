"""Connectionist temporal classification (Graves et al. 2006): torch's kernels for the loss and for its message."""

from __future__ import annotations

import math
from typing import Any

import torch

from pccompile.ir import Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.registry import define, rewrite

FORWARD, BACKWARD = "aten._ctc_loss.Tensor", "aten._ctc_loss_backward.Tensor"


def _loss_type(args: Any, type_of: Any) -> tuple[TensorType, TensorType]:
    """The loss of each sequence, and sums for the kernel of the message, as long as the longest target can be."""
    x, targets = type_of(args["log_probs"]), type_of(args["targets"])
    steps, count, _ = x.shape
    return TensorType((count,), x.dtype), TensorType((count, steps, 2 * targets.shape[-1] + 1), x.dtype)


def _message(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
    lengths = (n["input_lengths"], n["target_lengths"])
    saved = (b.get(Ref(n.name), 0), b.get(Ref(n.name), 1))
    return {
        "log_probs": b(
            BACKWARD, errors[0], n["log_probs"], n["targets"], *lengths, *saved, n["blank"], n["zero_infinity"]
        )
    }


def _sample(zero_infinity: bool) -> tuple[Any, ...]:
    x = torch.randn(6, 2, 4, dtype=torch.float64).log_softmax(-1)
    return (x, torch.tensor([[1, 2, 3], [2, 1, 1]]), torch.tensor([6, 6]), torch.tensor([3, 3]), 0, zero_infinity)


define(BACKWARD, "composite", infer=lambda args, type_of: type_of(args["log_probs"]))
define(
    FORWARD,
    "composite",
    _message,
    infer=_loss_type,
    samples=(lambda: _sample(False), lambda: _sample(True)),
    equation="−log p(targets)",
)


def _reduced(b: Builder, n: Node) -> Ref:
    """The loss as torch composes it: infinities dropped where asked for, then no reduction, the mean or the sum."""
    x: Any = n["log_probs"]
    batched = len(b.shape(x)) == 3
    x = x if batched else b("aten.unsqueeze.default", x, 1)
    lengths = (n["input_lengths"], n["target_lengths"])
    loss = b.get(b(FORWARD, x, n["targets"], *lengths, n["blank"], n["zero_infinity"]), 0)
    if n["zero_infinity"]:
        loss = b("aten.masked_fill.Scalar", loss, b("aten.eq.Scalar", loss, math.inf), 0.0)
    if n["reduction"] == 1:
        return b("aten.mean.default", b("aten.div.Tensor", loss, b("aten.clamp_min.default", lengths[1], 1)))
    if n["reduction"] == 2:
        return b("aten.sum.default", loss)
    return loss if batched else b("aten.squeeze.dim", loss, 0)


rewrite("aten.ctc_loss.Tensor", _reduced)
