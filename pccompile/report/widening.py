"""An ONNX file in a wider floating-point type, so that another engine can say what it computes but for rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

NARROWER: dict[int, frozenset[int]] = {
    TensorProto.FLOAT: frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16}),
    TensorProto.DOUBLE: frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT}),
}
TYPES = frozenset({"to", "dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision", "precision"})
"""Attributes that name an element type."""

IMPLIED = {
    "HannWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "BlackmanWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}
"""Operators that yield float32 where this attribute is absent."""


def widened(model: onnx.ModelProto, code: int) -> onnx.ModelProto:
    """A copy of `model` whose floating-point numbers, where they are narrower, have ONNX's element type `code`."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    widen_graph(wide.graph, code)
    for function in wide.functions:
        widen_nodes(function.node, code)
        for entry in function.value_info:
            widen_type(entry.type, code)
    return wide


def widen_graph(graph: onnx.GraphProto, code: int) -> None:
    """Change a graph and its subgraphs in place."""
    for tensor in graph.initializer:
        widen_tensor(tensor, code)
    for sparse in graph.sparse_initializer:
        widen_tensor(sparse.values, code)
    for entry in (*graph.input, *graph.output, *graph.value_info):
        widen_type(entry.type, code)
    widen_nodes(graph.node, code)


def widen_nodes(nodes: Iterable[onnx.NodeProto], code: int) -> None:
    """Change what the attributes of nodes hold and name, in place."""
    for node in nodes:
        for attribute in node.attribute:
            widen_attribute(attribute, code)
        names = {a.name for a in node.attribute}
        if code == TensorProto.DOUBLE and not node.domain:
            if node.op_type == "ConstantOfShape" and "value" not in names:
                zero = numpy_helper.from_array(np.zeros(1))
                node.attribute.append(onnx.helper.make_attribute("value", zero))
            implied = IMPLIED.get(node.op_type)
            if implied and implied not in names:
                node.attribute.append(onnx.helper.make_attribute(implied, code))


def widen_attribute(attribute: onnx.AttributeProto, code: int) -> None:
    """Change one attribute in place; numbers of a Constant node become a tensor."""
    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.TENSOR:
            widen_tensor(attribute.t, code)
        case kinds.TENSORS:
            for tensor in attribute.tensors:
                widen_tensor(tensor, code)
        case kinds.GRAPH:
            widen_graph(attribute.g, code)
        case kinds.TYPE_PROTO:
            widen_type(attribute.tp, code)
        case kinds.INT if attribute.name in TYPES and attribute.i in NARROWER[code]:
            attribute.i = code
        case kinds.FLOAT | kinds.FLOATS if attribute.name in ("value_float", "value_floats"):
            numbers = np.array(attribute.f if attribute.type == kinds.FLOAT else list(attribute.floats), np.float32)
            if TensorProto.FLOAT in NARROWER[code]:
                tensor = numpy_helper.from_array(numbers.astype(np.float64))
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def widen_tensor(tensor: onnx.TensorProto, code: int) -> None:
    """Change the element type of a tensor in place."""
    if tensor.data_type in NARROWER[code]:
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        wide = array.astype(onnx.helper.tensor_dtype_to_np_dtype(code))
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def widen_type(kind: onnx.TypeProto, code: int) -> None:
    """Change the element type that a type names, in place."""
    match kind.WhichOneof("value"):
        case "tensor_type" if kind.tensor_type.elem_type in NARROWER[code]:
            kind.tensor_type.elem_type = code
        case "sequence_type":
            widen_type(kind.sequence_type.elem_type, code)
        case "optional_type":
            widen_type(kind.optional_type.elem_type, code)
