"""Losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Value, as_tensor


def reduced(node: Node, scores: Tensor, target: Tensor, weight: Value) -> Tensor:
    """The negative log-likelihood of `target`, reduced as the node asks."""
    how, ignored = node.get("reduction", "mean"), node.get("ignore_index", -100)
    target = target.to(torch.int64)
    if isinstance(weight, Tensor):
        return weighted(scores, target, weight, ignored, how)
    known = None if weight is None else as_tensor(weight)
    return F.nll_loss(scores, target, known, ignore_index=ignored, reduction=how)


def weighted(scores: Tensor, target: Tensor, weight: Tensor, ignored: int, how: str) -> Tensor:
    """The same with class weights that are computed: torch's own loss has no derivative by them."""
    counted = target != ignored
    label = torch.where(counted, target, 0)
    weights = torch.where(counted, weight[label], 0.0)
    losses = -weights * scores.gather(1, label.unsqueeze(1)).squeeze(1)
    if how == "none":
        return losses
    return losses.sum() / weights.sum() if how == "mean" else losses.sum()


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(node: Node, scores: Tensor, target: Tensor, weight: Value = None) -> Tensor:
    """The negative log-likelihood of the targets."""
    return reduced(node, scores, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(node: Node, scores: Tensor, target: Tensor, weight: Value = None) -> Any:
    """The cross-entropy of the targets, and the log-probabilities where they are read."""
    logs = torch.log_softmax(scores, 1)
    loss = reduced(node, logs, target, weight)
    return (loss, logs) if node.wants(1) else loss
