"""Operators that ONNX defines by others: where their inputs come from makes no difference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import pccompile
from onnx_frontend.build import model
from pccompile.frontends.onnx import load_onnx, unsupported

node = helper.make_node
X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
SIZES = np.array([6, 3])
SOURCES = ("initializer", "Constant", "computed", "a function's result")


def sized(source):
    """A CenterCropPad to 6 × 3 whose sizes come from `source`."""
    nodes, weights, more = [], {}, {}
    if source == "initializer":
        weights["s"] = SIZES
    elif source == "Constant":
        nodes = [node("Constant", [], ["s"], value=numpy_helper.from_array(SIZES))]
    elif source == "computed":
        weights |= {"r": np.array([1]), "t": np.array([5, 2])}
        nodes = [node("Add", ["r", "t"], ["s"])]
    else:
        weights |= {"r": np.array([1]), "t": np.array([5, 2])}
        nodes = [node("Plus", ["r", "t"], ["s"], domain="own")]
        body = helper.make_function("own", "Plus", ["a", "b"], ["c"], [node("Add", ["a", "b"], ["c"])],
                                    [helper.make_opsetid("", 18)])  # fmt: skip
        more = {"functions": [body], "extra_opsets": [helper.make_opsetid("own", 1)]}
    return nodes, weights, more


@pytest.mark.parametrize("opset", [18, 21, 24])
@pytest.mark.parametrize("source", SOURCES)
def test_center_crop_pad_with_sizes_from(source, opset):
    nodes, weights, more = sized(source)
    for function in more.get("functions", ()):
        function.opset_import[0].version = opset
    weights["w"] = np.full(5, 2.0, np.float32)
    nodes = [*nodes, node("Mul", ["x", "w"], ["a"]), node("CenterCropPad", ["a", "s"], ["y"], axes=[0, 1])]
    made = model(nodes, {"x": [4, 5]}, {"y": [6, 3]}, weights, opset=opset, **more)
    assert not unsupported(made)
    module = load_onnx(made)
    expected = ReferenceEvaluator(made).run(None, {"x": X})[0]
    np.testing.assert_array_equal(module(torch.from_numpy(X)).detach().numpy(), expected)
    pccompile.compile(module, (torch.from_numpy(X),))(torch.from_numpy(X)).sum().backward()
    np.testing.assert_allclose(module.get_parameter("w").grad.numpy()[1:4], X.sum(0)[1:4], rtol=1e-6)


def test_what_is_cropped_may_be_an_initializer():
    weights = {"w": X, "s": SIZES}
    nodes = [node("CenterCropPad", ["w", "s"], ["c"]), node("Mul", ["x", "c"], ["y"])]
    module = load_onnx(model(nodes, {"x": [6, 3]}, {"y": [6, 3]}, weights, opset=18))
    assert torch.equal(module(torch.ones(6, 3))[1:5], torch.from_numpy(X[:, 1:4]))


def test_what_is_cropped_may_come_from_an_operator_that_onnx_does_not_know():
    nodes = [node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", alpha=2.0),
             node("CenterCropPad", ["a", "s"], ["y"])]  # fmt: skip
    extra = [helper.make_opsetid("com.microsoft", 1)]
    made = model(nodes, {"x": [6, 4]}, {"y": [6, 3]}, {"w": X, "s": SIZES}, opset=18, extra_opsets=extra)
    for entry in made.graph.output:
        entry.ClearField("type")
    expected = 2 * torch.ones(6, 4) @ torch.from_numpy(X)
    torch.testing.assert_close(load_onnx(made)(torch.ones(6, 4)), expected[:, 1:4])


@pytest.mark.parametrize("outer", [False, True])
def test_both_branches_may_call_their_sizes_the_same(outer):
    """The sizes are initializers of the branches, of other types, or of the graph around them."""

    def branch(name, sizes):
        own = [] if outer else [numpy_helper.from_array(sizes, "s")]
        nodes = [node("CenterCropPad", ["a", "s"], [name])]
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=name)], own)

    nodes = [
        node("Mul", ["x", "w"], ["a"]),
        node("If", ["c"], ["y"], then_branch=branch("t", SIZES), else_branch=branch("e", SIZES.astype(np.int32))),
    ]
    weights = {"w": np.ones(5, np.float32)} | ({"s": SIZES} if outer else {})
    made = model(nodes, {"x": [4, 5], "c": ([], TensorProto.BOOL)}, {"y": [6, 3]}, weights, opset=18)
    module = load_onnx(made)
    for chosen in (True, False):
        y = module(torch.from_numpy(X), torch.tensor(chosen))
        assert torch.equal(y[1:5], torch.from_numpy(X[:, 1:4]))


@pytest.mark.parametrize("state", [False, True])
def test_a_convolution_with_state_and_an_absent_bias(state):
    rng = np.random.default_rng(1)
    weights = {"w": rng.standard_normal((4, 1, 3)).astype(np.float32)}
    inputs = ["x", "w"]
    if state:
        weights["past"] = rng.standard_normal((1, 4, 2)).astype(np.float32)
        inputs += ["", "past"]
    made = model([node("CausalConvWithState", inputs, ["y", "next"])], {"x": [1, 4, 8]},
                 {"y": [1, 4, 8], "next": [1, 4, 2]}, weights, opset=27)  # fmt: skip
    x = rng.standard_normal((1, 4, 8)).astype(np.float32)
    results = load_onnx(made)(torch.from_numpy(x))
    for found, expected in zip(results, ReferenceEvaluator(made).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-6)


def test_a_map_over_a_sequence_with_a_weight():
    entry = helper.make_tensor_value_info
    body = helper.make_graph([node("Mul", ["e", "k"], ["r"])], "b", [entry("e", 1, [2]), entry("k", 1, [2])],
                             [entry("r", 1, [2])])  # fmt: skip
    nodes = [node("SequenceConstruct", ["x", "v"], ["q"]), node("SequenceMap", ["q", "w"], ["m"], body=body),
             node("ConcatFromSequence", ["m"], ["y"], axis=0)]  # fmt: skip
    weights = {"v": np.array([1, 2], np.float32), "w": np.array([3, 4], np.float32)}
    for opset in (17, 20):
        module = load_onnx(model(nodes, {"x": [2]}, {"y": [4]}, weights, opset=opset))
        assert module(torch.ones(2)).tolist() == [3, 4, 3, 8]
