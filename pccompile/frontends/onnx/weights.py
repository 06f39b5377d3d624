"""Large weights kept apart from the rest of a model, so that what rewrites the model does not copy them each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from pccompile.frontends.onnx.graph import Constant, constant_of
from pccompile.frontends.onnx.tensors import array_of
from pccompile.frontends.onnx.values import HOST_LIMIT, product


def without_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose large initializers have a name, a type and a shape only."""
    light = onnx.ModelProto()
    copy_fields(model, light, "graph")
    copy_fields(model.graph, light.graph, "initializer")
    for tensor in model.graph.initializer:
        if is_large(tensor):
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            light.graph.initializer.add().CopyFrom(tensor)
    return light


def is_large(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is too large to decide anything about the graph's form."""
    return bool(product(tensor.dims) > HOST_LIMIT)


def copy_fields(source: Any, target: Any, besides: str) -> None:
    """Copy all fields of a protobuf message but one."""
    for field, value in source.ListFields():
        if field.name == besides:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def weights_of(model: onnx.ModelProto, folder: Path | None) -> dict[str, Constant | None]:
    """The large initializers by name, and None for each small one, in the order of the file."""
    return {
        t.name: constant_of(t.name, array_of(t, folder), t.data_type, True) if is_large(t) else None
        for t in model.graph.initializer
    }


def as_inputs(light: onnx.ModelProto) -> None:
    """Turn the initializers without numbers into inputs, in place."""
    known = {i.name for i in light.graph.input}
    large = [t for t in light.graph.initializer if is_large(t)]
    for tensor in large:
        if tensor.name not in known:
            entry = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(entry)
    small = [t for t in light.graph.initializer if not is_large(t)]
    del light.graph.initializer[:]
    light.graph.initializer.extend(small)
