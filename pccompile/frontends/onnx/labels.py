"""Operators that look values up in tables (`ai.onnx.ml`). They run on the host and carry no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.scores import LEARNED, labels_of
from pccompile.frontends.onnx.values import Host, StringArray, Value, as_host, tensor_of, text_of

KINDS: dict[str, Callable[[Any], Any]] = {
    "strings": str,
    "int64s": int,
    "floats": np.float32,
}
DEFAULTS = {"strings": "_Unused", "int64s": -1, "floats": -0.0}


def array(value: Value, what: str) -> np.ndarray[Any, Any]:
    """A value's elements on the host."""
    return value.array if isinstance(value, StringArray) else as_host(value, what).array


def column(node: Node, name: str) -> tuple[str, np.ndarray[Any, Any]]:
    """The attribute `name`_…: which kind of list it is, or "tensor", and its elements."""
    given = node.get(f"{name}_tensor")
    if given is not None:
        return "tensor", given.array.reshape(-1)
    for kind in KINDS:
        if node.get(f"{name}_{kind}") is not None:
            made = np.empty(len(node.get(f"{name}_{kind}")), dtype=object)
            made[:] = [KINDS[kind](v) for v in node.get(f"{name}_{kind}")]
            return kind, made
    raise CompileError(f"{node.op_type} has no {name}")


@operator("LabelEncoder", domain=LEARNED)
def label_encoder(node: Node, x: Value) -> Value:
    """Each element replaced by what stands beside it in a table, or by a default."""
    _, keys = column(node, "keys")
    kind, values = column(node, "values")
    table = {key_of(k): v for k, v in zip(keys.tolist(), values.tolist(), strict=True)}
    other = default_of(node, kind, values)
    elements = array(x, "what LabelEncoder looks up")
    found = [table.get(key_of(v), other) for v in elements.reshape(-1).tolist()]
    if kind == "strings" or (values.dtype == object and isinstance(values[0], str)):
        return text_of(np.array(found, dtype=object).reshape(elements.shape))
    if kind == "tensor":
        return tensor_of(np.array(found, dtype=values.dtype).reshape(elements.shape), node.get("values_tensor").dtype)
    dtype = torch.int64 if kind == "int64s" else node.single
    return torch.tensor(found, dtype=dtype).reshape(elements.shape)


def key_of(value: Any) -> Any:
    """What a table finds `value` by; all NaN are one."""
    return "NaN" if isinstance(value, float) and value != value else value


def default_of(node: Node, kind: str, values: np.ndarray[Any, Any]) -> Any:
    """What stands for elements that the table lacks."""
    if node.get("default_tensor") is not None:
        return node.get("default_tensor").array.reshape(-1).tolist()[0]
    if kind == "tensor":
        kind = "strings" if values.dtype == object else "floats" if values.dtype.kind == "f" else "int64s"
    return node.get(f"default_{kind.removesuffix('s')}", DEFAULTS[kind])


@operator("CategoryMapper", domain=LEARNED)
def category_mapper(node: Node, x: Value) -> Value:
    """Strings as their numbers, or numbers as their strings."""
    words, numbers = node.get("cats_strings"), node.get("cats_int64s")
    elements = array(x, "what CategoryMapper looks up")
    if isinstance(x, StringArray):
        known = dict(zip(words, numbers, strict=True))
        found = [known.get(v, node.get("default_int64", -1)) for v in elements.reshape(-1)]
        return torch.tensor(found, dtype=torch.int64).reshape(elements.shape)
    named = dict(zip(numbers, words, strict=True))
    texts = [named.get(v, node.get("default_string", "_Unused")) for v in elements.reshape(-1).tolist()]
    return text_of(np.array(texts, dtype=object).reshape(elements.shape))


@operator("OneHotEncoder", domain=LEARNED)
def one_hot_encoder(node: Node, x: Value) -> Tensor:
    """A new last axis with a one at each element's category."""
    categories = node.get("cats_strings") or node.get("cats_int64s")
    elements = array(x, "what OneHotEncoder encodes")
    if not isinstance(x, StringArray):
        elements = elements.astype(np.int64)
    hits = elements[..., None] == np.array(categories, dtype=object if isinstance(x, StringArray) else np.int64)
    if not node.get("zeros", 1) and not hits.any(-1).all():
        raise CompileError("OneHotEncoder is given a value that is none of its categories")
    return torch.from_numpy(hits).to(node.single)


@operator("ZipMap", domain=LEARNED)
def zip_map(node: Node, x: Host) -> list[Any]:
    """A table from class to score for each row."""
    labels = labels_of(node)
    return [[dict(zip(labels, row, strict=True)) for row in np.atleast_2d(x.array).tolist()]]
