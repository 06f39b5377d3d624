"""The backend interface of the ONNX project."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import pccompile.onnx_backend as backend
from onnx_frontend.build import model, perceptron
from pccompile.diagnostics import CompileError

node = helper.make_node


def test_models_run_on_arrays_by_order_or_name():
    x = np.ones((2, 3), dtype=np.float32)
    prepared = backend.prepare(perceptron())
    (y,) = prepared.run([x])
    assert y.shape == (2, 2)
    for given in (x, {"x": x}, [numpy_helper.from_array(x)]):
        assert np.array_equal(prepared.run(given)[0], y)
    assert np.array_equal(backend.run_model(perceptron(), [x])[0], y)
    outputs = prepared.run([x])
    assert outputs[prepared.module.output_names[0]] is outputs[0]


def test_inputs_with_an_initializer_may_be_given_too():
    made = model([node("Add", ["x", "w"], ["y"])], {"x": [2], "w": [2]}, {"y": [2]}, {"w": np.float32([1, 2])})
    x, w = np.float32([3, 4]), np.float32([1, 2])
    assert backend.run_model(made, [x]).y.tolist() == [4.0, 6.0]
    assert backend.run_model(made, [x, w]).y.tolist() == [4.0, 6.0]
    with pytest.raises(CompileError, match="input w has an initializer of other numbers"):
        backend.run_model(made, [x, w + 1])


def test_wrong_inputs():
    prepared = backend.prepare(perceptron())
    with pytest.raises(CompileError, match="takes 1 inputs, 2 are given"):
        prepared.run([np.ones(3), np.ones(3)])
    with pytest.raises(CompileError, match="input x is missing"):
        prepared.run({})
    with pytest.raises(CompileError, match="there is no input z"):
        prepared.run({"x": np.ones((1, 3), np.float32), "z": 1})


def test_one_node_runs_in_the_operator_set_asked_for():
    x = np.float32([[1, 2], [3, 4]])
    assert backend.run_node(node("Softmax", ["x"], ["y"], axis=0), [x], opset_version=13)[0].sum() == pytest.approx(2)
    assert backend.run_node(node("Softmax", ["x"], ["y"], axis=0), [x], opset_version=11)[0].sum() == pytest.approx(1)


def test_sequences_and_absent_values():
    first = helper.make_node("SequenceInsert", ["s", "x"], ["t"])
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph = helper.make_graph(
        [first, helper.make_node("OptionalHasElement", ["o"], ["has"])],
        "g",
        [
            helper.make_value_info("s", sequence),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_value_info("o", helper.make_optional_type_proto(sequence)),
        ],
        [helper.make_value_info("t", sequence), helper.make_tensor_value_info("has", TensorProto.BOOL, [])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    one, two = np.float32([1]), np.float32([2])
    items, has = backend.run_model(made, [[one], two, None])
    assert [i.tolist() for i in items] == [[1.0], [2.0]]
    assert not has


def test_devices():
    assert backend.supports_device("CPU")
    assert not backend.supports_device("CUDA")
    with pytest.raises(CompileError, match="on the CPU here, not on CUDA"):
        backend.prepare(perceptron(), "CUDA")
