"""Small ONNX models for the tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(nodes, inputs, outputs, weights=None, opset=17, functions=(), extra_opsets=(), **named) -> onnx.ModelProto:
    """`inputs` and `outputs` map names to shapes, or to (shape, element type); `weights` maps names to arrays."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(n, t) for n, t in inputs.items()],
        [value(n, t) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *extra_opsets]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10, **named)


def value(name, described):
    if described is None:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    if isinstance(described, tuple):
        shape, kind = described
        return helper.make_tensor_value_info(name, kind, shape)
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, described)


def perceptron(prefix="fc", seed=0) -> onnx.ModelProto:
    """Two layers with weights called `fc1.weight` and so on."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Gemm", ["x", f"{prefix}1.weight", f"{prefix}1.bias"], ["a"], name="/fc1/Gemm", transB=1),
        helper.make_node("Tanh", ["a"], ["b"], name="/tanh"),
        helper.make_node("Gemm", ["b", f"{prefix}2.weight", f"{prefix}2.bias"], ["y"], name="/fc2/Gemm", transB=1),
    ]
    weights = {
        f"{prefix}1.weight": rng.standard_normal((5, 3)).astype(np.float32),
        f"{prefix}1.bias": rng.standard_normal(5).astype(np.float32),
        f"{prefix}2.weight": rng.standard_normal((2, 5)).astype(np.float32),
        f"{prefix}2.bias": rng.standard_normal(2).astype(np.float32),
    }
    return model(nodes, {"x": ["batch", 3]}, {"y": ["batch", 2]}, weights)
