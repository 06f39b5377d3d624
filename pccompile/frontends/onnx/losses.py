"""Losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator


def reduced(node: Node, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The negative log-likelihood of `target`, reduced as the node asks."""
    how, ignored = node.get("reduction", "mean"), node.get("ignore_index", -100)
    return F.nll_loss(scores, target.to(torch.int64), weight, ignore_index=ignored, reduction=how)


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(node: Node, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The negative log-likelihood of the targets."""
    return reduced(node, scores, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(node: Node, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
    """The cross-entropy of the targets, and the log-probabilities where they are read."""
    logs = torch.log_softmax(scores, 1)
    loss = reduced(node, logs, target, weight)
    return (loss, logs) if node.wants(1) else loss
