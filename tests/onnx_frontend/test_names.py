"""Weights are parameters under the file's own names, which are data whatever they contain."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from onnx import helper

from onnx_frontend.build import model, perceptron
from pccompile.frontends.onnx import load_onnx

node = helper.make_node


def chain(names):
    """x times each of several vectors."""
    nodes = [
        node("Mul", [f"v{i}" if i else "x", n], [f"v{i + 1}" if i + 1 < len(names) else "y"])
        for i, n in enumerate(names)
    ]
    weights = {n: np.full(3, 2.0 + i, np.float32) for i, n in enumerate(names)}
    return model(nodes, {"x": ["batch", 3]}, {"y": ["batch", 3]}, weights)


def test_keys_are_the_initializers_names():
    module = load_onnx(perceptron())
    assert list(module.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert all(p.requires_grad for p in module.parameters())
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})


@pytest.mark.parametrize("name", ["onnx::MatMul_12", "/m/layer.0/Constant_output_0", "0", "wеight", "x" * 100_000])
def test_odd_names_stay_as_they_are(name):
    module = load_onnx(chain([name]))
    assert list(module.state_dict()) == [name]
    traced(module)


HOSTILE = [
    ["a", "a.b"],
    ["."],
    ["a..b"],
    ["forward"],
    ["forward.x"],
    ["training"],
    ["_parameters"],
    ["graph"],
    ["state_dict.x"],
    ["a.__class__.x"],
    ["__class__"],
    ["weight\n\"quo'te"],
    ['__import__("os").system("touch pwned")'],
    ["class"],
    ["{x}"],
    ["a b", "a\tb", "a\u202eb"],
    ["self"],
    ["torch", "pytree", "inf", "None", "nan", "device"],
    ["a/b", "a_b", "a.b_"],
]


@pytest.mark.quick(10)
@pytest.mark.parametrize("names", HOSTILE)
def test_hostile_names_are_kept_apart_and_never_executed(names):
    module = load_onnx(chain(names))
    assert set(module.parameter_names) == set(names)
    assert len(set(module.parameter_names.values())) == len(names)
    for i, name in enumerate(names):
        assert module.get_parameter(module.parameter_names[name])[0] == 2.0 + i
    traced(module)
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert torch.equal(again(torch.ones(2, 3)), module(torch.ones(2, 3)))


def traced(module):
    """Export with an open batch, decompose, run with another batch."""
    x = torch.randn(2, 3)
    exported = torch.export.export(module, (x,), dynamic_shapes=module.dynamic_shapes((x,)), strict=False)
    wide = torch.randn(5, 3)
    assert torch.allclose(exported.run_decompositions().module()(wide), module(wide))


def test_a_weight_used_twice_is_one_parameter():
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Transpose", ["w"], ["wt"]),
        node("MatMul", ["a", "wt"], ["y"]),
    ]
    module = load_onnx(model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": np.ones((3, 4), np.float32)}))
    assert [n for n, _ in module.named_parameters()] == ["w"]
    module(torch.ones(2, 3)).sum().backward()
    assert torch.allclose(module.get_parameter("w").grad, torch.full((3, 4), 12.0))


def test_initializers_that_are_also_inputs():
    made = perceptron()
    made.graph.input.extend([helper.make_tensor_value_info("fc1.bias", 1, [5])])
    module = load_onnx(made)
    assert [t.name for t in module.input_types] == ["x"]
    assert "fc1.bias" in module.state_dict()


def test_what_learns_and_what_does_not():
    nodes = [
        node("BatchNormalization", ["x", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["a"]),
        node("Clip", ["a", "low", "high"], ["b"]),
        node("Constant", [], ["k"], value=helper.make_tensor("k", 1, [3, 2], [1.0, 2, 3, 4, 5, 6])),
        node("MatMul", ["b", "k"], ["c"]),
        node("Constant", [], ["eps"], value_float=0.1),
        node("Add", ["c", "eps"], ["d"]),
        node("Pow", ["d", "onnx::Pow_3"], ["e"]),
        node("Mul", ["e", "scale"], ["f"]),
        node("Mul", ["f", "net/Const_4:0"], ["y"]),
    ]
    three = {f"bn.{n}": np.ones(3, np.float32) for n in ("weight", "bias", "mean", "var")}
    scalars = {"low": np.float32(-1), "high": np.float32(1), "onnx::Pow_3": np.float32(2), "scale": np.float32(3)}
    scalars["net/Const_4:0"] = np.float32(0.5)  # TensorFlow's
    module = load_onnx(model(nodes, {"x": ["n", 3]}, {"y": ["n", 2]}, three | scalars))
    assert {n for n, _ in module.named_parameters()} == {"bn.weight", "bn.bias", "k", "scale"}
    assert {n for n, _ in module.named_buffers()} == {"bn.mean", "bn.var"}
