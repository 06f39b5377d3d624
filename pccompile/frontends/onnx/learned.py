"""Linear models, support vector machines, and what prepares their features (`ai.onnx.ml`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.scores import (
    LEARNED,
    attribute_tensor,
    chosen,
    floats,
    labels_of,
    transformed,
    two_classes,
)
from pccompile.frontends.onnx.values import Value
from pccompile.limits import spend


def given(node: Node, name: str, like: Tensor) -> Tensor:
    """A list of numbers that a node must have."""
    found = attribute_tensor(node, name, like)
    if found is None:
        raise CompileError(f"{node.op_type} has no {name}")
    return found


def feature_count(node: Node, index: int) -> int:
    """How many columns input `index` of an operator of `ai.onnx.ml` has by the operator's numbers; 0 if any will do."""

    def count(name: str) -> int:
        return len(node.get(name) or ())

    match node.op_type:
        case "LinearRegressor":
            return count("coefficients") // max(int(node.get("targets", 1)), 1)
        case "LinearClassifier":
            labels = count("classlabels_ints") or count("classlabels_strings")
            return count("coefficients") // max(count("intercepts") or labels, 1)
        case "SVMRegressor" if node.get("n_supports", 0):
            return count("support_vectors") // int(node.get("n_supports"))
        case "SVMRegressor":
            return count("coefficients")
        case "SVMClassifier" if vectors := sum(node.get("vectors_per_class") or ()):
            return count("support_vectors") // int(vectors)
        case "SVMClassifier":
            return count("coefficients") // max(count("classlabels_ints") or count("classlabels_strings"), 1)
        case "Scaler":
            most = max(count("offset"), count("scale"))
        case "Imputer":
            most = max(count("imputed_value_floats"), count("imputed_value_int64s"))
        case "FeatureVectorizer" if index < count("inputdimensions"):
            return int(node.get("inputdimensions")[index])
        case _:
            return 0
    return most if most > 1 else 0


def linear(node: Node, x: Tensor) -> Tensor:
    """Coefficients and intercepts applied to each sample, `[sample, target]`."""
    weights = given(node, "coefficients", x).reshape(-1, x.shape[-1])
    shift = attribute_tensor(node, "intercepts", x)
    result = torch.matmul(x, weights.t())
    return result if shift is None else result + shift


@operator("LinearRegressor", domain=LEARNED)
def linear_regressor(node: Node, x: Tensor) -> Tensor:
    """A linear function of each sample."""
    return transformed(linear(node, floats(node, x)), node.get("post_transform", "NONE")).to(node.single)


@operator("LinearClassifier", domain=LEARNED)
def linear_classifier(node: Node, x: Tensor) -> tuple[Value, Tensor]:
    """The label of the highest linear score, and the scores."""
    scores, transform = linear(node, floats(node, x)).to(node.single), node.get("post_transform", "NONE")
    labels = labels_of(node)
    if scores.shape[1] == 1 and len(labels) == 2:
        second = (scores > 0).squeeze(1).to(torch.int64)
        return chosen(node, second), two_classes(scores, transform, True)
    if scores.shape[1] < 2:
        raise CompileError("LinearClassifier with a single class")
    return chosen(node, torch.argmax(scores, 1)), transformed(scores, transform)


def kernel(node: Node, x: Tensor, vectors: Tensor) -> Tensor:
    """The kernel of each sample with each support vector, `[sample, vector]`."""
    gamma, offset, degree = node.get("kernel_params") or (0.0, 0.0, 0.0)
    if node.get("kernel_type", "LINEAR") == "RBF":
        return torch.exp(-gamma * (x[:, None, :] - vectors).square().sum(-1))
    product = torch.matmul(x, vectors.t())
    match node.get("kernel_type", "LINEAR"):
        case "LINEAR":
            return product
        case "POLY":
            return torch.pow(gamma * product + offset, degree)
        case "SIGMOID":
            return torch.tanh(gamma * product + offset)
    raise CompileError(f"{node.op_type} has the unknown kernel {node.get('kernel_type')}")


@operator("SVMRegressor", domain=LEARNED)
def svm_regressor(node: Node, x: Tensor) -> Tensor:
    """The regression of a support vector machine; 1 or −1 for one that tells one class from the rest."""
    x, count = floats(node, x), node.get("n_supports", 0)
    coefficients, rho = given(node, "coefficients", x), given(node, "rho", x)
    if count:
        result = torch.matmul(kernel(node, x, given(node, "support_vectors", x).reshape(count, -1)), coefficients)
    else:
        result = torch.matmul(x, coefficients)
    result = (result + rho[0])[:, None]
    if node.get("one_class", 0):
        result = torch.where(result > 0, 1.0, -1.0)
    return transformed(result, node.get("post_transform", "NONE")).to(node.single)


@operator("SVMClassifier", domain=LEARNED)
def svm_classifier(node: Node, x: Tensor) -> tuple[Value, Tensor]:
    """The label that most pairs of classes vote for, and the scores or probabilities."""
    x, transform = floats(node, x), node.get("post_transform", "NONE")
    sizes, classes = node.get("vectors_per_class") or [], len(labels_of(node))
    if not sizes:
        weights = given(node, "coefficients", x).reshape(classes, -1)
        scores = torch.matmul(x, weights.t()) + given(node, "rho", x)[0]
        return chosen(node, torch.argmax(scores, 1)), transformed(scores, transform).to(node.single)
    scores, votes = duels(node, x, sizes)
    if node.get("prob_a"):
        likely = pairwise(node, scores, classes)
        return chosen(node, torch.argmax(votes, 1)), transformed(likely, transform).to(node.single)
    if scores.shape[1] > 1:
        return chosen(node, torch.argmax(votes, 1)), transformed(scores, transform).to(node.single)
    return chosen(node, torch.argmax(votes, 1)), two_classes(scores, transform, False).to(node.single)


def duels(node: Node, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The score of each pair of classes, and how many pairs each class wins."""
    total, classes = sum(sizes), len(sizes)
    spend("entries", 100 * classes**2, f"{node.op_type} of {classes} classes")
    kernels = kernel(node, x, given(node, "support_vectors", x).reshape(total, -1))
    weights, rho = given(node, "coefficients", x).reshape(-1, total), given(node, "rho", x)
    own = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(classes)]
    scores: list[Tensor] = []
    wins = [torch.zeros_like(x[:, 0]) for _ in range(classes)]
    for i in range(classes):
        for j in range(i + 1, classes):
            first = torch.matmul(kernels[:, own[i]], weights[j - 1, own[i]])
            second = torch.matmul(kernels[:, own[j]], weights[i, own[j]])
            score = first + second + rho[len(scores)]
            scores.append(score)
            wins[i] = wins[i] + (score > 0)
            wins[j] = wins[j] + (score <= 0)
    return torch.stack(scores, 1), torch.stack(wins, 1)


def pairwise(node: Node, scores: Tensor, classes: int) -> Tensor:
    """Probabilities of the classes from those of the pairs (Wu, Lin and Weng 2004, second method)."""
    a, b = given(node, "prob_a", scores), given(node, "prob_b", scores)
    first = torch.clamp(torch.sigmoid(-(scores * a + b)), 1e-7, 1 - 1e-7)
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    upper, lower = [torch.tensor([p[k] for p in pairs]) for k in (0, 1)]
    r = scores.new_zeros(scores.shape[0], classes, classes)
    r = r.index_put((torch.arange(r.shape[0])[:, None], upper, lower), first)
    r = r.index_put((torch.arange(r.shape[0])[:, None], lower, upper), 1 - first)
    q = torch.diag_embed(r.square().sum(1)) - r * r.transpose(1, 2)
    p = torch.full_like(scores[:, :1], 1 / classes).expand(-1, classes)
    going = torch.ones_like(p[:, 0], dtype=torch.bool)
    for _ in range(max(100, classes)):
        slopes = torch.matmul(q, p.unsqueeze(2)).squeeze(2)
        mean = (p * slopes).sum(1)
        going = going & ((slopes - mean[:, None]).abs().amax(1) >= 0.005 / classes)
        new = p
        for t in range(classes):
            step = (mean - slopes[:, t]) / q[:, t, t]
            new = torch.cat([new[:, :t], (new[:, t] + step)[:, None], new[:, t + 1 :]], 1)
            mean = (mean + step * (step * q[:, t, t] + 2 * slopes[:, t])) / (1 + step) ** 2
            slopes = (slopes + step[:, None] * q[:, t]) / (1 + step)[:, None]
            new = new / (1 + step)[:, None]
        p = torch.where(going[:, None], new, p)
    return p


@operator("Scaler", domain=LEARNED)
def scaler(node: Node, x: Tensor) -> Tensor:
    """(x − offset) · scale."""
    x = x.to(node.single)
    offset, scale = attribute_tensor(node, "offset", x), attribute_tensor(node, "scale", x)
    x = x if offset is None else x - offset
    return x if scale is None else x * scale


@operator("Normalizer", domain=LEARNED)
def normalizer(node: Node, x: Tensor) -> Tensor:
    """Rows divided by their norm: MAX, L1 or L2."""
    x = x.to(node.single)
    match node.get("norm", "MAX"):
        case "MAX":
            size = x.amax(-1, keepdim=True)
        case "L1":
            size = x.abs().sum(-1, keepdim=True)
        case _:
            size = x.square().sum(-1, keepdim=True).sqrt()
    return x / torch.where(size == 0, 1.0, size)


@operator("Binarizer", domain=LEARNED)
def binarizer(node: Node, x: Tensor) -> Tensor:
    """1 above the threshold, else 0."""
    return torch.gt(x, node.get("threshold", 0.0)).to(x.dtype)


@operator("Imputer", domain=LEARNED)
def imputer(node: Node, x: Tensor) -> Tensor:
    """x with one value, often NaN, replaced."""
    kind = "float" if x.is_floating_point() else "int64"
    wanted = torch.from_numpy(np.asarray(node.get(f"imputed_value_{kind}s"))).to(x.dtype)
    replaced = node.get(f"replaced_value_{kind}", 0)
    return torch.where(torch.isnan(x) if replaced != replaced else x == replaced, wanted, x)


@operator("FeatureVectorizer", domain=LEARNED)
def feature_vectorizer(node: Node, *values: Tensor) -> Tensor:
    """The values' columns beside each other, as float32."""
    return torch.cat([(v if v.dim() > 1 else v[None]).to(node.single) for v in values], 1)


@operator("ArrayFeatureExtractor", domain=LEARNED)
def array_feature_extractor(node: Node, x: Tensor, index: Tensor) -> Any:
    """The elements of the last axis at some indices."""
    result = torch.index_select(x, -1, index.reshape(-1))
    return result if x.dim() > 1 else result[None]
