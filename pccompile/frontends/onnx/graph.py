"""An ONNX graph as plain Python data: nodes in order, constants with their role."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.onnx.registry import Node
from pccompile.frontends.onnx.tensors import array_of
from pccompile.frontends.onnx.values import (
    DTYPES,
    NARROW,
    NUMPY,
    TEXT,
    Host,
    LowPrecision,
    StringArray,
    stored,
    text_of,
)

TYPES = frozenset({"to", "dtype", "output_datatype", "stash_type", "softmax_precision"})
"""Attributes that name an element type."""


@dataclass(slots=True)
class Constant:
    """Numbers that a file holds: where they are kept in the module, and whether they learn.

    `code` is ONNX's element type of text and of narrow numbers, whose array and dtype are what holds them; else 0.
    `formula`: an initializer that could learn, taken as part of a formula.
    """

    name: str
    array: np.ndarray[Any, Any]
    dtype: torch.dtype
    initializer: bool
    kind: str = "host"
    path: str = ""
    code: int = 0
    formula: bool = False


@dataclass(slots=True)
class OnnxGraph:
    """Nodes in execution order, with the names of what goes in and out."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    last_reads: tuple[tuple[str, ...], ...] = field(default=())

    def subgraphs(self) -> Iterator[OnnxGraph]:
        """This graph and all that its nodes hold, outermost first."""
        yield self
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, OnnxGraph):
                    yield from value.subgraphs()


def read(
    proto: onnx.GraphProto, opsets: dict[str, int], folder: Path | None, weights: Mapping[str, Constant | None]
) -> OnnxGraph:
    """`proto` as plain data."""
    constants = {name: weight for name, weight in weights.items() if weight is not None}
    for tensor in proto.initializer:
        constants[tensor.name] = constant_of(tensor.name, array_of(tensor, folder), tensor.data_type, True)
    nodes = []
    for index, node in enumerate(proto.node):
        made = read_node(node, index, opsets, folder)
        value = constant_value(made)
        if value is None:
            nodes.append(made)
        else:
            constants[made.outputs[0]] = constant_holding(made.outputs[0], value)
    constants = {n: constants[n] for n in weights if n in constants} | constants
    inputs = tuple(i.name for i in proto.input if i.name not in constants)
    outputs = tuple(o.name for o in proto.output)
    for index, made in enumerate(nodes):
        if made.op_type == "Gradient":
            nodes[index] = with_body(made, nodes)  # in order: a derivative of a derivative holds the first
    nodes = without_unread(nodes, outputs)
    return OnnxGraph(proto.name, inputs, outputs, tuple(nodes), constants, last_reads(nodes, outputs))


def constant_of(name: str, array: np.ndarray[Any, Any], code: int, initializer: bool) -> Constant:
    """An array of ONNX's element type `code` as a constant."""
    if code == TEXT:
        return Constant(name, array, torch.int64, initializer, code=code)
    if code in NARROW:
        return Constant(name, array.astype(NUMPY[NARROW[code]]), NARROW[code], initializer, code=code)
    return Constant(name, array, DTYPES[code], initializer)


def constant_holding(name: str, value: Host | StringArray | LowPrecision) -> Constant:
    """A value that a Constant node makes."""
    match value:
        case StringArray():
            return Constant(name, value.array, torch.int64, False, code=TEXT)
        case LowPrecision():
            return Constant(name, value.tensor.numpy(), value.tensor.dtype, False, code=value.code)
    return Constant(name, value.array, value.dtype, False)


def with_body(node: Node, nodes: list[Node]) -> Node:
    """A Gradient node with the part of the graph that it differentiates, from `xs` and `zs` to `y`, as its `body`."""
    if not node.get("xs") or node.get("y") is None:
        raise CompileError("Gradient does not say of what (y), or with respect to what (xs)", node.location)
    inputs = (*node.get("xs"), *(node.get("zs") or ()))
    needed, chosen = {node.get("y")}, list[Node]()
    for other in reversed(nodes):
        if needed & (set(other.outputs) - set(inputs)):
            chosen.append(other)
            needed |= {*other.inputs, *free_names(other)}
    outputs = (node.get("y"),)
    ordered = chosen[::-1]
    body = OnnxGraph(f"{node.name}.body", inputs, outputs, tuple(ordered), {}, last_reads(ordered, outputs))
    return replace(node, attributes={**node.attributes, "body": body})


def last_reads(nodes: list[Node], outputs: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """For each node the values that nobody reads after it."""
    seen = set(outputs)
    result: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        names = {*node.inputs, *free_names(node)} - {""}
        result.append(tuple(sorted(names - seen)))
        seen |= names
    return tuple(reversed(result))


def without_unread(nodes: list[Node], outputs: tuple[str, ...]) -> list[Node]:
    """The nodes, outputs that nobody reads made nameless, so that nobody computes them."""
    needed = set(outputs) | {i for n in nodes for i in (*n.inputs, *free_names(n))}
    return [replace(n, outputs=tuple(o if o in needed else "" for o in n.outputs)) for n in nodes]


def free_names(node: Node) -> set[str]:
    """The outer values that a node's subgraphs read."""
    names: set[str] = set()
    for value in node.attributes.values():
        if isinstance(value, OnnxGraph):
            own = set(value.inputs) | set(value.constants) | {o for n in value.nodes for o in n.outputs}
            read_names = {i for n in value.nodes for i in (*n.inputs, *free_names(n))} | set(value.outputs)
            names |= read_names - own
    return names


def read_node(proto: onnx.NodeProto, index: int, opsets: dict[str, int], folder: Path | None) -> Node:
    """One node as plain data."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    name = proto.name or f"{proto.op_type}_{index}"
    attributes = {a.name: attribute(a, opsets, folder) for a in proto.attribute}
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    return Node(name, proto.op_type, domain, opsets.get(domain, 1), inputs, outputs, attributes, location(proto, name))


def attribute(proto: onnx.AttributeProto, opsets: dict[str, int], folder: Path | None) -> Any:
    """An attribute's value: numbers and text as such, tensors on the host, graphs as graphs."""
    kinds = onnx.AttributeProto
    match proto.type:
        case kinds.FLOAT:
            return proto.f
        case kinds.INT:
            return proto.i
        case kinds.STRING:
            return proto.s.decode("utf-8", "replace")
        case kinds.FLOATS:
            return list(proto.floats)
        case kinds.INTS:
            return list(proto.ints)
        case kinds.STRINGS:
            return [s.decode("utf-8", "replace") for s in proto.strings]
        case kinds.TENSOR:
            return stored(array_of(proto.t, folder), proto.t.data_type)
        case kinds.TENSORS:
            return [stored(array_of(t, folder), t.data_type) for t in proto.tensors]
        case kinds.TYPE_PROTO:
            return proto.tp
        case kinds.GRAPH:
            return read(proto.g, opsets, folder, {})
    return None


def constant_value(node: Node) -> Host | StringArray | LowPrecision | None:
    """What a Constant node holds."""
    if node.op_type != "Constant" or node.domain:
        return None
    for key, value in node.attributes.items():
        match key:
            case "value":
                return value if isinstance(value, (Host, StringArray, LowPrecision)) else None
            case "value_float" | "value_floats":
                return Host(np.asarray(value, dtype=np.float32), torch.float32)
            case "value_int" | "value_ints":
                return Host(np.asarray(value, dtype=np.int64), torch.int64)
            case "value_string" | "value_strings":
                return text_of(value)
    return None


def uses(graph: OnnxGraph) -> dict[str, list[tuple[Node, int]]]:
    """Who reads each value, and as which input."""
    readers: dict[str, list[tuple[Node, int]]] = {}
    for part in graph.subgraphs():
        for node in part.nodes:
            for index, name in enumerate(node.inputs):
                readers.setdefault(name, []).append((node, index))
    return readers


def with_floats(graph: OnnxGraph, dtype: torch.dtype) -> None:
    """Turn all floating-point numbers of `graph` into `dtype`."""
    code = next(c for c, d in DTYPES.items() if d is dtype)
    for part in graph.subgraphs():
        for constant in part.constants.values():
            if constant.dtype.is_floating_point and not constant.code:
                constant.array, constant.dtype = constant.array.astype(NUMPY[dtype]), dtype
        part.nodes = tuple(replace(node, single=dtype) for node in part.nodes)
        for node in part.nodes:
            if node.op_type == "ConstantOfShape":
                node.attributes.setdefault("value", Host(np.zeros(1, np.float32), torch.float32))
            for key, value in node.attributes.items():
                if isinstance(value, Host) and value.dtype.is_floating_point:
                    node.attributes[key] = value.to(dtype)
                elif key in TYPES and value in DTYPES and DTYPES[value].is_floating_point:
                    node.attributes[key] = code


def finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether there is neither infinity nor NaN."""
    return bool(np.isfinite(array.astype(np.float32) if array.dtype.itemsize < 4 else array).all())


def location(proto: onnx.NodeProto, name: str) -> Location:
    """Where a node comes from: the torch exporter's notes where it left some, else the node's name."""
    notes = {p.key: p.value for p in proto.metadata_props}
    module, file, line = name, "", 0
    try:
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((s for s in reversed(scopes[:-1]) if s), name)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    frames = re.findall(r'File "([^"\n]*)", line (\d{1,9})', notes.get("pkg.torch.onnx.stack_trace", ""))
    own = [f for f in frames if "/site-packages/torch/" not in f[0]]
    if frames:
        file, line = (own or frames)[-1][0], int((own or frames)[-1][1])
    return Location(str(module), file, line)
