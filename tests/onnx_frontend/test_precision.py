"""Files of ai.onnx.ml in float32 and in float64: every number follows the precision that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import pccompile
from onnx_frontend.build import model
from pccompile.cli import main
from pccompile.frontends.onnx import load_onnx

node = helper.make_node
ML = "ai.onnx.ml"
WIDTH = 4
FAST = settings(max_examples=40, deadline=None, derandomize=True)


def numbers(rng, *shape):
    return [float(np.float32(v)) for v in rng.standard_normal(int(np.prod(shape)))]


def scaler(rng, x, y, extra):
    return [node("Scaler", [x], [y], domain=ML, offset=numbers(rng, WIDTH), scale=numbers(rng, WIDTH))]


def normalizer(rng, x, y, extra):
    return [node("Normalizer", [x], [y], domain=ML, norm=str(rng.choice(["L1", "L2", "MAX"])))]


def imputer(rng, x, y, extra):
    return [node("Imputer", [x], [y], domain=ML, imputed_value_floats=numbers(rng, WIDTH), replaced_value_float=0.0)]


def binarizer(rng, x, y, extra):
    sum_of = [node("Binarizer", [x], [f"{y}_b"], domain=ML, threshold=numbers(rng, 1)[0])]
    return [*sum_of, node("Add", [x, f"{y}_b"], [y])]


def vectorizer(rng, x, y, extra):
    both = node("FeatureVectorizer", [x, x], [f"{y}_v"], domain=ML, inputdimensions=[WIDTH, WIDTH])
    extra[f"{y}_i"] = rng.permutation(2 * WIDTH)[:WIDTH].astype(np.int64)
    return [both, node("ArrayFeatureExtractor", [f"{y}_v", f"{y}_i"], [y], domain=ML)]


def dense(rng, x, y, extra):
    extra[f"{y}_w"] = (0.5 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
    return [node("MatMul", [x, f"{y}_w"], [f"{y}_h"]), node("Tanh", [f"{y}_h"], [y])]


STEPS = (scaler, normalizer, imputer, binarizer, vectorizer, dense)


def linear_regressor(rng, x):
    c, i = numbers(rng, 2, WIDTH), numbers(rng, 2)
    return node("LinearRegressor", [x], ["y"], domain=ML, coefficients=c, intercepts=i, targets=2)


def linear_classifier(rng, x):
    transform = str(rng.choice(["NONE", "SOFTMAX", "LOGISTIC"]))
    c, i = numbers(rng, 3, WIDTH), numbers(rng, 3)
    return node("LinearClassifier", [x], ["label", "y"], domain=ML, coefficients=c, intercepts=i,
                classlabels_ints=[0, 1, 2], post_transform=transform)  # fmt: skip


def svm_regressor(rng, x):
    kernel = str(rng.choice(["RBF", "LINEAR", "POLY", "SIGMOID"]))
    return node("SVMRegressor", [x], ["y"], domain=ML, kernel_type=kernel, kernel_params=[0.3, 0.1, 2.0],
                n_supports=3, support_vectors=numbers(rng, 3, WIDTH), coefficients=numbers(rng, 3),
                rho=numbers(rng, 1))  # fmt: skip


def svm_classifier(rng, x):
    return node("SVMClassifier", [x], ["label", "y"], domain=ML, kernel_type="RBF", kernel_params=[0.3, 0.0, 3.0],
                vectors_per_class=[2, 2, 1], support_vectors=numbers(rng, 5, WIDTH), coefficients=numbers(rng, 2, 5),
                rho=numbers(rng, 3), classlabels_ints=[0, 1, 2])  # fmt: skip


def tree_regressor(rng, x):
    splits = [*numbers(rng, 1), 0.0, 0.0]
    return node("TreeEnsembleRegressor", [x], ["y"], domain=ML, n_targets=1, nodes_treeids=[0, 0, 0],
                nodes_nodeids=[0, 1, 2], nodes_featureids=[int(rng.integers(WIDTH)), 0, 0], nodes_values=splits,
                nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
                target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
                target_weights=numbers(rng, 2))  # fmt: skip


def tree_classifier(rng, x):
    splits = [*numbers(rng, 1), 0.0, 0.0]
    return node("TreeEnsembleClassifier", [x], ["label", "y"], domain=ML, nodes_treeids=[0, 0, 0],
                nodes_nodeids=[0, 1, 2], nodes_featureids=[int(rng.integers(WIDTH)), 0, 0], nodes_values=splits,
                nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
                class_treeids=[0, 0], class_nodeids=[1, 2], class_ids=[0, 2], class_weights=[0.25, 0.75],
                classlabels_int64s=[0, 1, 2])  # fmt: skip


HEADS = (linear_regressor, linear_classifier, svm_regressor, svm_classifier, tree_regressor, tree_classifier)


def pipeline(seed, steps, head):
    """A file of some steps and a head, all numbers drawn with `seed`."""
    rng = np.random.default_rng(seed)
    weights, nodes, x = {}, [], "x"
    for index, step in enumerate(steps):
        nodes += step(rng, x, f"h{index}", weights)
        x = f"h{index}"
    nodes.append(head(rng, x))
    outputs = dict.fromkeys(nodes[-1].output)
    made = model(nodes, {"x": [3, WIDTH]}, outputs, weights, extra_opsets=[helper.make_opsetid(ML, 3)])
    for entry in made.graph.output:
        entry.ClearField("type")
    return made, rng.standard_normal((3, WIDTH)).astype(np.float32)


def run(made, **feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(made.SerializeToString(), options).run(None, feed)


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


@FAST
@given(st.integers(0, 10**6), st.lists(st.sampled_from(STEPS), max_size=4), st.sampled_from(HEADS))
def test_random_pipelines_follow_the_precision(seed, steps, head):
    made, x = pipeline(seed, steps, head)
    expected = run(made, x=x)
    single = as_tuple(load_onnx(made)(torch.from_numpy(x)))
    double = as_tuple(load_onnx(made, dtype=torch.float64)(torch.from_numpy(x).double()))
    for a, b, e in zip(single, double, expected, strict=True):
        assert a.numpy(force=True).dtype == e.dtype
        assert b.dtype is (torch.float64 if e.dtype == np.float32 else torch.int64)
        np.testing.assert_allclose(a.numpy(force=True), e, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(b.numpy(force=True), e, rtol=2e-4, atol=2e-4)


@settings(FAST, max_examples=6)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(STEPS), max_size=3), st.sampled_from(HEADS[:4]))
def test_gradients_of_random_pipelines_in_double_precision(seed, steps, head):
    """Central differences at a step that float32 could not resolve: nothing on the way is single."""
    made, x = pipeline(seed, [*steps, dense], head)
    module = load_onnx(made, dtype=torch.float64)
    x = torch.from_numpy(x).double().requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 4)))

    def total(value):
        y = as_tuple(module(value))[-1]
        return (y * weights[:, : y.shape[1]]).sum()

    pc = pccompile.compile(module, (x,))
    y = as_tuple(pc(x))[-1]
    (found,) = torch.autograd.grad((y * weights[:, : y.shape[1]]).sum(), x)
    direction = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((3, WIDTH)))
    with torch.no_grad():
        slope = (total(x + 1e-7 * direction) - total(x - 1e-7 * direction)) / 2e-7
    assert float((found * direction).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("steps", [(scaler,), (normalizer,), (vectorizer,), (scaler, dense, scaler)])
def test_circuits_of_pipelines(tmp_path: Path, capsys, steps):
    made, _ = pipeline(3, [*steps, dense], linear_regressor)
    onnx.save(made, tmp_path / "made.onnx")
    code = main([str(tmp_path / "made.onnx"), "--backend", "netlist", "--verify"])
    printed = capsys.readouterr()
    assert code == 0, printed.err


@pytest.mark.parametrize("op_type", ["RandomNormal", "HannWindow", "EyeLike", "Range", "ConstantOfShape"])
def test_types_that_are_not_written_down_follow_too(op_type):
    nodes = {
        "RandomNormal": [node("RandomNormal", [], ["c"], shape=[2])],
        "HannWindow": [node("HannWindow", ["two"], ["c"])],
        "EyeLike": [node("EyeLike", ["x"], ["c"])],
        "Range": [node("Range", ["zero", "limit", "step"], ["c"])],
        "ConstantOfShape": [node("ConstantOfShape", ["sizes"], ["c"])],
    }[op_type]
    weights = {"two": np.array(2), "sizes": np.array([2]), "zero": np.float32(0), "limit": np.float32(2),
               "step": np.float32(1), "w": np.ones((2, 2), np.float32)}  # fmt: skip
    used = {i for n in nodes for i in n.input} | {"w"}
    made = model([*nodes, node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["y"])], {"x": [2, 2]},
                 {"y": [2, 2]}, {k: v for k, v in weights.items() if k in used})  # fmt: skip
    module = load_onnx(made, dtype=torch.float64)
    assert module(torch.ones(2, 2, dtype=torch.float64)).dtype is torch.float64


def test_integers_become_the_precision_that_is_asked_for():
    made = model(
        [node("LinearRegressor", ["x"], ["y"], domain=ML, coefficients=[0.1, 0.2])],
        {"x": ([3, 2], TensorProto.INT64)},
        {"y": [3, 1]},
        extra_opsets=[helper.make_opsetid(ML, 1)],
    )
    x = torch.tensor([[1, 2], [3, 4], [2**24 + 1, 0]])
    assert load_onnx(made)(x).dtype is torch.float32
    y = load_onnx(made, dtype=torch.float64)(x)
    assert y.dtype is torch.float64
    assert float(y[2]) == float(np.float32(0.1)) * (2**24 + 1)
