"""What the ONNX cases do not hold: gradients through unusual inputs, tracing, control flow, host arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import pccompile
from onnx_frontend.build import model
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx

node = helper.make_node


def traced(module, *inputs):
    return torch.export.export(module, inputs, dynamic_shapes=module.dynamic_shapes(inputs), strict=False)


def test_recurrent_weights_may_be_inputs():
    """Gradients reach W, R and B that are computed, by torch's own layer and written out."""
    names = {"x": [4, 2, 3], "w": [1, 20, 3], "r": [1, 20, 5], "b": [1, 40]}
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in names.values()]
    typed = {k: (v, TensorProto.DOUBLE) for k, v in names.items()}
    grads = []
    for clip in ({}, {"clip": 1e6}):
        made = model(
            [node("LSTM", list(names), ["y"], hidden_size=5, **clip)], typed, {"y": ([4, 1, 2, 5], TensorProto.DOUBLE)}
        )
        y = load_onnx(made)(*inputs)
        grads.append(torch.autograd.grad(y.square().sum(), inputs))
    for fused, written in zip(*grads, strict=True):
        assert torch.allclose(fused, written)


def test_numbers_cast_like_a_tensor_and_even_splits_stay_on_the_host():
    """Pad asks for a known fill and Reshape for a known shape, while the tensor that gives the type is traced."""
    nodes = [
        node("CastLike", ["fill", "x"], ["value"]),
        node("Pad", ["x", "pads", "value"], ["p"]),
        node("Split", ["sizes"], ["rows", "columns"], num_outputs=2),
        node("Concat", ["columns", "rows"], ["target"], axis=0),
        node("Reshape", ["p", "target"], ["y"]),
    ]
    weights = {"fill": np.array(7), "pads": np.array([0, 0, 0, 1]), "sizes": np.array([2, 5])}
    module = load_onnx(model(nodes, {"x": [2, 4]}, {"y": None}, weights, opset=21))
    y = traced(module, torch.zeros(2, 4)).module()(torch.zeros(2, 4))
    assert y.shape == (5, 2)
    assert y.sum() == 14


def test_shape_arithmetic_stays_on_the_host():
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Mul", ["n", "two"], ["m"]),
        node("Unsqueeze", ["m", "axes"], ["m1"]),
        node("Concat", ["m1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.array(0), "two": np.array(2), "axes": np.array([0]), "rest": np.array([-1])}
    program = traced(load_onnx(model(nodes, {"x": ["n", 4]}, {"y": None}, weights)), torch.randn(3, 4))
    assert {str(n.target) for n in program.graph.nodes if n.op == "call_function"} <= {
        "aten.sym_size.int",
        "aten.reshape.default",
        "<built-in function mul>",
    }
    assert program.module()(torch.zeros(5, 4)).shape == (10, 2)


def branches(condition):
    """x + 1 or x − 1."""
    out = [helper.make_tensor_value_info("out", 1, None)]
    yes = helper.make_graph([node("Add", ["x", "one"], ["out"])], "yes", [], out)
    no = helper.make_graph([node("Sub", ["x", "one"], ["out"])], "no", [], out)
    return [*condition, node("If", ["c"], ["y"], then_branch=yes, else_branch=no, name="/if")]


def test_if_by_shape_and_by_data():
    by_shape = [
        node("Shape", ["x"], ["s"], start=1),
        node("ReduceProd", ["s"], ["p"], keepdims=0),
        node("Greater", ["p", "three"], ["c"]),
    ]
    weights = {"one": np.float32(1), "three": np.array(3)}
    module = load_onnx(model(branches(by_shape), {"x": ["n", 4]}, {"y": None}, weights, opset=18))
    assert traced(module, torch.zeros(2, 4)).module()(torch.zeros(5, 4)).mean() == 1
    by_data = [node("ReduceSum", ["x"], ["t"], keepdims=0), node("Greater", ["t", "zero"], ["c"])]
    module = load_onnx(
        model(branches(by_data), {"x": ["n", 4]}, {"y": None}, weights | {"zero": np.float32(0)}, opset=18)
    )
    program = traced(module, torch.ones(2, 4)).module()
    assert program(torch.ones(3, 4)).mean() == 2
    assert program(-torch.ones(3, 4)).mean() == -2


def looped(count):
    """x multiplied by w, `count` times."""
    body = helper.make_graph(
        [node("Mul", ["a", "w"], ["b"]), node("Identity", ["going"], ["still"]), node("Identity", ["b"], ["scanned"])],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("going", 9, []), ("a", 1, None))],
        [
            helper.make_tensor_value_info(n, t, s)
            for n, t, s in (("still", 9, []), ("b", 1, None), ("scanned", 1, None))
        ],
    )
    return [node("Loop", [count, "", "x"], ["y", "all"], body=body, name="/loop")]


def test_loops_with_a_known_count_are_unrolled():
    weights = {"w": np.float32(2), "three": np.array(3)}
    module = load_onnx(model(looped("three"), {"x": ["n"]}, {"y": ["n"], "all": None}, weights))
    y, everything = traced(module, torch.ones(2)).module()(torch.ones(5))
    assert y.tolist() == [8.0] * 5
    assert everything.shape == (3, 5)
    module(torch.ones(2))[0].sum().backward()
    assert module.get_parameter("w").grad == 24


def test_loops_with_a_count_in_the_data_are_refused_when_traced():
    made = model(
        looped("count"), {"x": ["n"], "count": ([], TensorProto.INT64)}, {"y": ["n"], "all": None}, {"w": np.float32(2)}
    )
    with pytest.raises(CompileError, match="number of Loop iterations depends on the data"):
        traced(load_onnx(made), torch.ones(2), torch.tensor(3))
    assert load_onnx(made, constants={"count": 2})(torch.ones(1))[0].item() == 4


def test_inputs_by_name_and_order():
    made = model([node("Sub", ["left", "right"], ["y"])], {"left": [2], "right": [2]}, {"y": [2]})
    module = load_onnx(made)
    one, two = torch.ones(2), 2 * torch.ones(2)
    assert torch.equal(module(one, two), module(right=two, left=one))


def test_example_inputs_stay_within_their_tables():
    nodes = [node("Cast", ["ids"], ["i"], to=TensorProto.INT64), node("Gather", ["table", "i"], ["y"])]
    module = load_onnx(
        model(
            nodes,
            {"ids": (["batch", "sequence"], TensorProto.INT32)},
            {"y": None},
            {"table": np.ones((5, 4), np.float32)},
        )
    )
    (ids,) = module.example_inputs()
    assert ids.shape == (2, 8)
    assert 0 <= ids.min() <= ids.max() < 5
    assert torch.equal(module.example_inputs(seed=3)[0], module.example_inputs(seed=3)[0])
    assert module.example_inputs({"ids": [1, 3]})[0].shape == (1, 3)


def test_verification_in_double_precision_reaches_constants():
    """A grid in a Constant node is no buffer, and GridSample takes no mixture of precisions."""
    grid = np.array([[[[-0.5, 0.2], [0.3, 0.4]]]], np.float32)
    nodes = [
        node("Constant", [], ["val_0"], value=numpy_helper.from_array(grid)),
        node("Mul", ["x", "w"], ["scaled"]),
        node("GridSample", ["scaled", "val_0"], ["y"]),
    ]
    made = model(nodes, {"x": [1, 1, 2, 2]}, {"y": None}, {"w": np.ones((2, 2), np.float32)})
    x = torch.randn(1, 1, 2, 2)
    report = pccompile.verify(pccompile.compile(made, (x,)), x)
    assert report.passed
    assert report.tolerance == 1e-10
    assert "gradients were compared in float64" in report.notes


def test_class_weights_and_statistics_may_be_computed():
    """torch has no derivative by the weights of a loss nor by the statistics of batch normalisation."""
    kinds = {"x": [4, 3], "t": ([4], TensorProto.INT64), "w": [3]}
    loss = model([node("NegativeLogLikelihoodLoss", ["x", "t", "w"], ["y"])], kinds, {"y": []})
    x, w = torch.randn(4, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    target = torch.tensor([0, 2, 1, 2])
    found = torch.autograd.grad(pccompile.compile(loss, (x, target, w))(x, target, w), [x, w])
    mean = -(w[target] * x[torch.arange(4), target]).sum() / w[target].sum()
    for got, wanted in zip(found, torch.autograd.grad(mean, [x, w]), strict=True):
        torch.testing.assert_close(got, wanted)
    compiled = pccompile.compile(Likelihood(), (x, target, w.detach()))
    with pytest.raises(CompileError, match="not differentiable with respect to argument 'weight'"):
        compiled(x, target, w)


class Likelihood(torch.nn.Module):
    """torch's own loss."""

    def forward(self, x, target, weight):
        return torch.nn.functional.nll_loss(x, target, weight)


@pytest.mark.parametrize("making", [False, True], ids=["plain", "makes a tensor"])
def test_only_the_chosen_branch_sends_gradients(making):
    """log(sum) beside w · x: where the sum is negative, the logarithm's derivative is no number."""
    out = [helper.make_tensor_value_info("out", 1, None)]
    nodes = [node("Log", ["t"], ["l"]), node("Mul", ["l", "w"], ["lw"]), node("Mul", ["lw", "x"], ["out"])]
    held = []
    if making:  # torch.cond cannot have a branch that makes a tensor, i + i: it becomes an operand
        nodes[2:] = [
            node("Add", ["i", "i"], ["j"]),
            node("Gather", ["lw", "j"], ["g"]),
            node("Mul", ["g", "x"], ["out"]),
        ]
        held = [numpy_helper.from_array(np.array([1, 0, 1]), "i")]
    yes = helper.make_graph(nodes, "yes", [], out, held)
    table = [numpy_helper.from_array(np.arange(1, 4, dtype=np.float32), "v")]
    no = helper.make_graph([node("Mul", ["x", "w"], ["a"]), node("Add", ["a", "v"], ["out"])], "no", [], out, table)
    outer = [
        node("ReduceSum", ["x"], ["t"], keepdims=0),
        node("Greater", ["t", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
    ]
    weights = {"zero": np.float32(0), "w": np.ones(3, np.float32)}
    module = load_onnx(model(outer, {"x": ["n", 3]}, {"y": ["n", 3]}, weights, opset=18))
    pc = pccompile.compile(module, (torch.rand(2, 3),))
    assert "torch.where" not in pc.source
    for x in (torch.rand(4, 3), -torch.rand(5, 3)):
        y = module(x)  # chooses as it runs
        torch.testing.assert_close(pc(x), y)
        learning = [module.get_parameter(n) for n in (["w"] if x.sum() > 0 else ["w", "v"])]
        found = torch.autograd.grad(pc(x).square().sum(), learning)
        for got, wanted in zip(found, torch.autograd.grad(y.square().sum(), learning), strict=True):
            assert wanted.isfinite().all()
            torch.testing.assert_close(got, wanted)
