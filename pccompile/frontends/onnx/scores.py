"""What the models of `ai.onnx.ml` do with scores: their transforms, and the labels that they choose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node
from pccompile.frontends.onnx.values import StringArray, Value, tensor_of, text_of, tracing

LEARNED = "ai.onnx.ml"
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def transformed(scores: Tensor, name: str) -> Tensor:
    """Scores `[sample, class]` after the transform called `name`."""
    match name:
        case "NONE":
            return scores
        case "SOFTMAX":
            return torch.softmax(scores, -1)
        case "LOGISTIC":
            return torch.sigmoid(scores)
        case "SOFTMAX_ZERO":
            return softmax_zero(scores)
        case "PROBIT":
            return torch.mul(torch.special.erfinv(2 * scores - 1), math.sqrt(2))
    raise CompileError(f"there is no transform of scores called {name}")


def softmax_zero(scores: Tensor) -> Tensor:
    """Softmax in which scores of 0 stay 0."""
    highest = scores.amax(-1, keepdim=True)
    parts = torch.where(scores.abs() > 1e-7, torch.exp(scores - highest), scores * torch.exp(-highest))
    total = parts.sum(-1, keepdim=True)
    return torch.where(total == 0, 0.5, parts / torch.where(total == 0, 1.0, total))


def labels_of(node: Node) -> tuple[str, ...] | tuple[int, ...]:
    """The classes' names, or numbers."""
    for key in ("classlabels_strings", "classlabels_ints", "classlabels_int64s"):
        if node.get(key):
            return tuple(node.get(key))
    raise CompileError(f"{node.op_type} has no class labels")


def chosen(node: Node, index: Tensor) -> Value:
    """The label of each class index."""
    labels = labels_of(node)
    if isinstance(labels[0], int):
        return torch.tensor(labels, dtype=torch.int64)[index]
    if tracing(index):
        raise CompileError(
            f"the labels of {node.op_type} are text that depends on the data", hint="cut the model before the labels"
        )
    return StringArray(text_of(list(labels)).array[index.numpy()])


def two_classes(score: Tensor, transform: str, probability: bool) -> Tensor:
    """Both classes' scores where a model has but that of the second: 1 − s and s of a probability, else −s and s.

    ONNX leaves this open; it is what onnxruntime does, which knows of the transforms only LOGISTIC and PROBIT here.
    """
    if transform == "PROBIT":
        return transformed(score, transform)
    if transform == "LOGISTIC":
        return torch.sigmoid(torch.cat([-score, score], 1))
    return torch.cat([1 - score if probability else -score, score], 1)


def attribute_tensor(node: Node, name: str, like: Tensor) -> Tensor | None:
    """A list of numbers among the attributes, or its form as a tensor, in the type of `like`; None where absent."""
    given: Any = node.get(name)
    if given is None and node.get(f"{name}_as_tensor") is not None:
        given = node.get(f"{name}_as_tensor").array
    if given is None or len(given) == 0:
        return None
    return tensor_of(np.asarray(given, dtype=np.float64), torch.float64).to(like.dtype)


def floats(node: Node, x: Tensor) -> Tensor:
    """x as floating-point numbers: integers become what float32 is here."""
    return x if x.is_floating_point() else x.to(node.single)
