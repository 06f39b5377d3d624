"""From a file to a module: read, check, inline functions, convert old operator sets, build."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import torch

from pccompile.diagnostics import Collector, CompileError, Problem, first_line
from pccompile.files.reading import read_file
from pccompile.frontends.onnx import checks
from pccompile.frontends.onnx.given_numbers import check_known, fixed_inputs, with_initializers
from pccompile.frontends.onnx.graph import Constant, constant_of, with_floats
from pccompile.frontends.onnx.graph import read as read_graph
from pccompile.frontends.onnx.inlining import prepared
from pccompile.frontends.onnx.input_types import InputType
from pccompile.frontends.onnx.module import OnnxModule
from pccompile.frontends.onnx.roles import assign_roles, fold_constant_shapes
from pccompile.frontends.onnx.tensors import array_of
from pccompile.frontends.onnx.values import DTYPES, HOST_LIMIT, NARROW, TEXT, product, type_name
from pccompile.limits import account

Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"

LARGEST = 2**31
"""Bytes that a protobuf file may have; larger models keep their weights in files beside it."""


def load_onnx(
    source: Source,
    *,
    constants: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    train: Iterable[str] = (),
    freeze: Iterable[str] = (),
) -> OnnxModule:
    """A trainable module that runs an ONNX graph.

    `source` is a path, the bytes of a file, or a ModelProto. `constants` fixes inputs or initializers to numbers, such
    as a sampling rate that decides which branch of the model runs. `dtype` (float32 or float64) replaces every
    floating-point type of the file, for verification in double precision or for training a half-precision file.
    `train` and `freeze` are patterns (as of fnmatch) of constants that learn, or do not, whatever is otherwise
    concluded from their use.
    Raises CompileError with everything that is wrong. What a file may ask for is bounded, see `pccompile.budget`.
    """
    with sound(source):
        return loaded(source, dict(constants or {}), dtype, train, freeze)


def loaded(
    source: Source,
    constants: Mapping[str, Any],
    dtype: torch.dtype | None,
    train: Iterable[str],
    freeze: Iterable[str],
) -> OnnxModule:
    """The module of a file that may be malformed. Raises CompileError, and anything for what no check foresaw."""
    model, weights, folder = checked(source, constants)
    collector = Collector()
    model = prepared(model)
    checks.check_structure(model, collector)
    checks.check_operators(model, collector)
    collector.raise_if_any()
    checks.check_attributes(model, collector)
    collector.raise_if_any()
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    types = [input_type(i) for i in model.graph.input if i.name not in weights]
    stored = sum(w.array.nbytes for w in weights.values() if w is not None)
    with account(stored):
        graph = read_graph(model.graph, opsets, folder, weights)
        fold_constant_shapes(graph)
    assign_roles(graph, train, freeze, constants)
    if dtype is not None:
        with_floats(graph, dtype)
        types = [replace(t, dtype=dtype) if t.form == "tensor" and t.dtype.is_floating_point else t for t in types]
    fixed = fixed_inputs(types, {n: v for n, v in constants.items() if n in {t.name for t in types}})
    module = OnnxModule(graph, [t for t in types if t.name not in fixed], fixed, stored)
    module.replaced = {n: v for n, v in constants.items() if n not in fixed}
    return module


@contextmanager
def sound(source: Source) -> Iterator[None]:
    """Within: a file is read. What goes wrong there is the file's fault, and raises CompileError in one line."""
    try:
        yield
    except (CompileError, MemoryError):
        raise
    except Exception as error:
        name = f"{source}" if isinstance(source, (str, os.PathLike)) else "the model"
        what = f"{name} is malformed: {type(error).__name__}: {first_line(error)}"
        raise CompileError(what, hint="onnx.checker.check_model may say more") from error


def checked(
    source: Source, constants: Mapping[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Constant | None], Path | None]:
    """A model in which large weights are inputs, its weights, and its folder. Raises CompileError.

    constants: other numbers for some of its initializers, beside those for inputs.
    """
    model, folder = read(source)
    check_known(model, constants)
    model = with_initializers(model, constants)
    light = without_numbers(model)
    collector = Collector()
    checks.check_structure(light, collector)
    checks.check_types(light, collector)
    checks.check_tensors(model, folder, collector)
    collector.raise_if_any()
    as_inputs(light)
    return light, weights_of(model, folder), folder


def unsupported(source: Source) -> list[Problem]:
    """Everything that keeps a model from being loaded, without raising."""
    try:
        with sound(source):
            return problems(source)
    except CompileError as error:
        return list(error.problems)


def problems(source: Source) -> list[Problem]:
    """Everything that keeps a model from being loaded. Raises CompileError for what is the only thing to be said."""
    model, folder = read(source)
    light, collector = without_numbers(model), Collector()
    for check in (checks.check_structure, checks.check_types, checks.check_operators):
        check(light, collector)
    checks.check_tensors(model, folder, collector)
    if any("no rule" not in p.what for p in collector.problems):
        return collector.problems
    as_inputs(light)
    collector = Collector()
    checks.check_operators(prepared(light), collector)
    return collector.problems


def read(source: Source) -> tuple[onnx.ModelProto, Path | None]:
    """The model, and the folder that its external data has to lie in."""
    if isinstance(source, onnx.ModelProto):
        return recognised(source, "the model"), None
    if isinstance(source, bytes):
        return parsed(source, "the model"), None
    path = Path(source)
    return parsed(read_file(path, LARGEST), str(path)), path.parent


def parsed(content: bytes, name: str) -> onnx.ModelProto:
    """The model that `content` encodes."""
    if not content:
        raise CompileError(f"{name} is empty")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:
        hint = "the file may be cut short: compare its size with the original's"
        raise CompileError(f"{name} is not an ONNX model, or is damaged", hint=hint) from None
    return recognised(model, name)


def recognised(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model`, which must have a graph: other protobuf files parse as one without."""
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise CompileError(f"{name} is not an ONNX model: it holds no graph")
    if garbled(model):
        raise CompileError(f"{name} is damaged: it holds names that are not UTF-8 text")
    return model


def garbled(message: Any) -> bool:
    """Whether a text in a protobuf message is not UTF-8; protobuf then returns it as bytes."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        entries = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        if field.type == field.TYPE_STRING and any(isinstance(v, bytes) for v in entries):
            return True
        if field.type == field.TYPE_MESSAGE and any(garbled(v) for v in entries):
            return True
    return False


def input_type(entry: onnx.ValueInfoProto) -> InputType:
    """An input's type as the file declares it."""
    kind = entry.type.WhichOneof("value")
    if kind != "tensor_type":
        return InputType(entry.name, torch.float32, None, kind.removesuffix("_type"))
    tensor = entry.type.tensor_type
    form = "tensor" if tensor.elem_type in DTYPES else type_name(tensor.elem_type)
    dtype = torch.int64 if tensor.elem_type == TEXT else (DTYPES | NARROW)[tensor.elem_type]
    if not tensor.HasField("shape"):
        return InputType(entry.name, dtype, None, form)
    sizes: Iterable[int | str] = (
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim
    )
    return InputType(entry.name, dtype, tuple(sizes), form)


def without_numbers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose large initializers have a name, a type and a shape only: rewriting copies less."""
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
