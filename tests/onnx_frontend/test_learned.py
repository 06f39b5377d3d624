"""Operators of `ai.onnx.ml` compared with onnxruntime."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import pccompile.onnx_backend as backend
from onnx_frontend import runtime

TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
RNG = np.random.default_rng(0)


agree = partial(runtime.agree, domain="ai.onnx.ml", version=3)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_models(transform):
    x = draw(6, 4)
    agree(
        "LinearRegressor",
        [x],
        coefficients=draw(12).tolist(),
        intercepts=draw(3).tolist(),
        targets=3,
        post_transform=transform,
    )
    for labels in ({"classlabels_ints": [3, 7, 5]}, {"classlabels_strings": ["a", "b", "c"]}):
        weights = {"coefficients": draw(12).tolist(), "intercepts": draw(3).tolist(), "post_transform": transform}
        agree("LinearClassifier", [x], 2, **labels, **weights)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear_models_of_two_classes(transform):
    weights = {"coefficients": draw(4).tolist(), "intercepts": draw(1).tolist(), "post_transform": transform}
    agree("LinearClassifier", [draw(9, 4)], 2, classlabels_ints=[3, 7], **weights)


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vector_regression(kernel):
    weights = {"coefficients": draw(5).tolist(), "rho": draw(1).tolist(), "support_vectors": draw(15).tolist()}
    parameters = {"kernel_type": kernel, "kernel_params": [0.3, 0.5, 2.0]}
    agree("SVMRegressor", [draw(7, 3)], n_supports=5, **weights, **parameters)
    agree("SVMRegressor", [draw(7, 3)], n_supports=5, one_class=1, **weights, **parameters)


@pytest.mark.parametrize("kernel, classes, proba", itertools.product(["LINEAR", "RBF"], [2, 3], [False, True]))
def test_support_vector_classification(kernel, classes, proba):
    sizes = [3, 2, 4][:classes]
    pairs = classes * (classes - 1) // 2
    weights = {
        "coefficients": draw((classes - 1) * sum(sizes)).tolist(),
        "rho": draw(pairs).tolist(),
        "support_vectors": draw(sum(sizes) * 3).tolist(),
        "vectors_per_class": sizes,
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.5, 2.0],
        "classlabels_ints": [4, 2, 9][:classes],
    }
    if proba:
        weights |= {"prob_a": (-np.abs(draw(pairs))).tolist(), "prob_b": draw(pairs).tolist()}
    agree("SVMClassifier", [draw(8, 3)], 2, **weights)


def trees(count, depth, features, seed=0):
    """Complete trees as the old operators describe them, and their leaves."""
    rng = np.random.default_rng(seed)
    nodes = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")}
    nodes["missing_value_tracks_true"] = []
    leaves = []
    for tree in range(count):
        for number in range(2 ** (depth + 1) - 1):
            leaf = number >= 2**depth - 1
            modes = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")
            entry = {
                "treeids": tree,
                "nodeids": number,
                "featureids": 0 if leaf else int(rng.integers(features)),
                "values": 0.0 if leaf else float(np.float32(rng.standard_normal())),
                "modes": "LEAF" if leaf else modes[int(rng.integers(4))],
                "truenodeids": 0 if leaf else 2 * number + 1,
                "falsenodeids": 0 if leaf else 2 * number + 2,
                "missing_value_tracks_true": 0 if leaf else int(rng.integers(2)),
            }
            for key, value in entry.items():
                nodes[key].append(value)
            if leaf:
                leaves.append((tree, number))
    return {f"nodes_{k}": v for k, v in nodes.items()}, leaves


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_trees_for_regression(how):
    nodes, leaves = trees(3, 3, 5)
    x = draw(20, 5)
    x[3, 2] = np.nan
    targets = {
        "target_treeids": [t for t, _ in leaves for _ in range(2)],
        "target_nodeids": [n for _, n in leaves for _ in range(2)],
        "target_ids": [0, 1] * len(leaves),
        "target_weights": draw(2 * len(leaves)).tolist(),
    }
    agree(
        "TreeEnsembleRegressor", [x], n_targets=2, aggregate_function=how, base_values=[0.5, -1.0], **nodes, **targets
    )


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_trees_for_classification(transform):
    nodes, leaves = trees(2, 2, 3)
    votes = {
        "class_treeids": [t for t, _ in leaves],
        "class_nodeids": [n for _, n in leaves],
        "class_ids": [i % 3 for i in range(len(leaves))],
        "class_weights": draw(len(leaves)).tolist(),
    }
    x = draw(12, 3)
    agree("TreeEnsembleClassifier", [x], 2, classlabels_int64s=[5, 6, 8], post_transform=transform, **nodes, **votes)
    for voted, weights in itertools.product((0, 1), (draw(len(leaves)), np.abs(draw(len(leaves))) / 4)):
        votes |= {"class_ids": [voted] * len(leaves), "class_weights": weights.tolist()}
        labels = {"classlabels_strings": ["no", "yes"]}
        agree("TreeEnsembleClassifier", [x], 2, post_transform=transform, **labels, **nodes, **votes)


def test_features():
    x = draw(3, 4)
    x[1] = 0
    for norm in ("MAX", "L1", "L2"):
        agree("Normalizer", [x], norm=norm)
    agree("Scaler", [x], offset=draw(4).tolist(), scale=draw(4).tolist())
    agree("Binarizer", [x], threshold=0.3)
    agree("FeatureVectorizer", [x, x[:, :2]], inputdimensions=[4, 2])
    holes = np.where(RNG.random((3, 4)) < 0.5, np.nan, x).astype(np.float32)
    agree("Imputer", [holes], imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan"))
    agree("Imputer", [np.array([[1, -1], [-1, 3]])], imputed_value_int64s=[7, 8], replaced_value_int64=-1)
    agree("ArrayFeatureExtractor", [x, np.array([2, 0])])


def test_labels():
    numbers, words = np.array([[1, 3], [2, 9]]), np.array([["a", "b"], ["c", "a"]], dtype=object)
    agree("OneHotEncoder", [numbers], cats_int64s=[1, 2, 3])
    agree("OneHotEncoder", [words], cats_strings=["b", "a"])
    agree("CategoryMapper", [words], cats_strings=["a", "b"], cats_int64s=[4, 5], default_int64=-3)
    agree("CategoryMapper", [numbers], cats_strings=["a", "b"], cats_int64s=[1, 2], default_string="none")
    agree("LabelEncoder", [words], keys_strings=["a", "b"], values_floats=[0.5, 1.5], default_float=-2.0)
    agree("LabelEncoder", [numbers], keys_int64s=[1, 2], values_strings=["x", "y"])
    nan = np.array([np.nan, 1.0, 2.0], dtype=np.float32)
    agree("LabelEncoder", [nan], keys_floats=[float("nan"), 1.0], values_int64s=[7, 8], default_int64=0)
    agree("ZipMap", [draw(2, 2)], classlabels_strings=["u", "v"])


def test_gradients_reach_the_features():
    """The score of a support vector machine as torch differentiates it, by central differences."""
    attributes = {
        "coefficients": draw(5).tolist(),
        "rho": [0.1],
        "support_vectors": draw(15).tolist(),
        "kernel_type": "RBF",
        "kernel_params": [0.3, 0.0, 0.0],
        "n_supports": 5,
    }
    node = helper.make_node("SVMRegressor", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    x = draw(1, 3)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])], [onnx.ValueInfoProto(name="y")]
    )
    module = backend.prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)])).module
    source = torch.from_numpy(x).requires_grad_()
    module(source).sum().backward()
    step = 1e-2
    for i in range(3):
        moved = [torch.from_numpy(x + s * step * np.eye(3, dtype=np.float32)[i]) for s in (1, -1)]
        slope = (module(moved[0]) - module(moved[1])).item() / (2 * step)
        assert source.grad[0, i].item() == pytest.approx(slope, abs=1e-3)
