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

from pccompile.diagnostics import Location
from pccompile.frontends.onnx.registry import Node, find
from pccompile.frontends.onnx.tensors import array_of
from pccompile.frontends.onnx.values import DTYPES, NARROW, NUMPY, TEXT, Host, Narrow, Text, product, stored, text_of

VIEWS = frozenset({"Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Expand", "Concat"})
"""Operators through which a constant still counts as feeding a weight."""

FORMULAS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Where", "Clip", "Expand", "CastLike"}
    | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
)
"""Operators whose single numbers are part of a formula, if their names are made up."""

GENERATED = re.compile(
    r"\d+|(.*[/.:_])?(Constant|constant|const|val|scalar_tensor|onnx::|ortshared|_to_copy|clone)[\w.]*|.*_cast(_\d+)?"
    r"|(.*/)?Const(_\d+)?:0|ConstantFolding/.*"  # TensorFlow's
)
"""Names that exporters make up for the numbers in formulas."""

TYPES = frozenset({"to", "dtype", "output_datatype", "stash_type", "softmax_precision"})
"""Attributes that name an element type."""

LARGEST_FOLD = 2**28


@dataclass(slots=True)
class Constant:
    """Numbers that a file holds: where they are kept in the module, and whether they learn.

    `code` is ONNX's element type of text and of narrow numbers, whose array and dtype are what holds them; else 0.
    """

    name: str
    array: np.ndarray[Any, Any]
    dtype: torch.dtype
    initializer: bool
    kind: str = "host"
    path: str = ""
    code: int = 0


@dataclass(slots=True)
class Graph:
    """Nodes in execution order, with the names of what goes in and out."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    last_reads: tuple[tuple[str, ...], ...] = field(default=())

    def subgraphs(self) -> Iterator[Graph]:
        """This graph and all that its nodes hold, outermost first."""
        yield self
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, Graph):
                    yield from value.subgraphs()


def build(
    proto: onnx.GraphProto, opsets: dict[str, int], folder: Path | None, weights: Mapping[str, Constant | None]
) -> Graph:
    """The graph that `proto` describes, its constants given their roles; `weights` holds those that lie apart."""
    graph = read(proto, opsets, folder, weights)
    fold_constant_shapes(graph)
    assign_roles(graph)
    return graph


def read(
    proto: onnx.GraphProto, opsets: dict[str, int], folder: Path | None, weights: Mapping[str, Constant | None]
) -> Graph:
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
    return Graph(proto.name, inputs, outputs, tuple(nodes), constants, last_reads(nodes, outputs))


def constant_of(name: str, array: np.ndarray[Any, Any], code: int, initializer: bool) -> Constant:
    """An array of ONNX's element type `code` as a constant."""
    if code == TEXT:
        return Constant(name, array, torch.int64, initializer, code=code)
    if code in NARROW:
        return Constant(name, array.astype(NUMPY[NARROW[code]]), NARROW[code], initializer, code=code)
    return Constant(name, array, DTYPES[code], initializer)


def constant_holding(name: str, value: Host | Text | Narrow) -> Constant:
    """A value that a Constant node makes."""
    match value:
        case Text():
            return Constant(name, value.array, torch.int64, False, code=TEXT)
        case Narrow():
            return Constant(name, value.tensor.numpy(), value.tensor.dtype, False, code=value.code)
    return Constant(name, value.array, value.dtype, False)


def with_body(node: Node, nodes: list[Node]) -> Node:
    """A Gradient node with the part of the graph that it differentiates, from `xs` and `zs` to `y`, as its `body`."""
    inputs = (*node.get("xs"), *(node.get("zs") or ()))
    needed, chosen = {node.get("y")}, list[Node]()
    for other in reversed(nodes):
        if needed & (set(other.outputs) - set(inputs)):
            chosen.append(other)
            needed |= {*other.inputs, *free_names(other)}
    outputs = (node.get("y"),)
    ordered = chosen[::-1]
    body = Graph(f"{node.name}.body", inputs, outputs, tuple(ordered), {}, last_reads(ordered, outputs))
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
        if isinstance(value, Graph):
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


def constant_value(node: Node) -> Host | Text | Narrow | None:
    """What a Constant node holds."""
    if node.op_type != "Constant" or node.domain:
        return None
    for key, value in node.attributes.items():
        match key:
            case "value":
                return value if isinstance(value, (Host, Text, Narrow)) else None
            case "value_float" | "value_floats":
                return Host(np.asarray(value, dtype=np.float32), torch.float32)
            case "value_int" | "value_ints":
                return Host(np.asarray(value, dtype=np.int64), torch.int64)
            case "value_string" | "value_strings":
                return text_of(value)
    return None


def fold_constant_shapes(graph: Graph) -> None:
    """Turn ConstantOfShape nodes that make weights into constants.

    In a file that has more of them than weights, such as the light test networks, they all stand for weights.
    """
    readers = uses(graph)
    kept_weights = sum(
        c.initializer and c.dtype.is_floating_point and c.array.size > 1 for c in graph.constants.values()
    )
    filled = [n for n in graph.nodes if n.op_type == "ConstantOfShape" and n.inputs[0] in graph.constants]
    emptied = len(filled) >= 8 and len(filled) > kept_weights
    for part in graph.subgraphs():
        kept = []
        for node in part.nodes:
            sizes = (
                part.constants.get(node.inputs[0]) if node.op_type == "ConstantOfShape" and not node.domain else None
            )
            weight = sizes is not None and (emptied or feeds_weight(node.outputs[0], readers, statistics=True))
            if sizes is None or not weight or not 0 <= product(sizes.array.tolist()) <= LARGEST_FOLD:
                kept.append(node)
                continue
            fill = node.get("value") or Host(np.zeros(1, np.float32), torch.float32)
            if not isinstance(fill, Host):
                kept.append(node)
                continue
            array = np.full(sizes.array.tolist(), fill.array.reshape(-1)[0])
            part.constants[node.outputs[0]] = Constant(node.outputs[0], array, fill.dtype, emptied)
        part.nodes = tuple(kept)
        part.last_reads = last_reads(kept, part.outputs)


def uses(graph: Graph) -> dict[str, list[tuple[Node, int]]]:
    """Who reads each value, and as which input."""
    readers: dict[str, list[tuple[Node, int]]] = {}
    for part in graph.subgraphs():
        for node in part.nodes:
            for index, name in enumerate(node.inputs):
                readers.setdefault(name, []).append((node, index))
    return readers


def feeds_weight(
    name: str, readers: dict[str, list[tuple[Node, int]]], statistics: bool = False, depth: int = 8
) -> bool:
    """Whether a value is read as a weight (or a statistic), directly or through operators that only rearrange it."""
    for node, index in readers.get(name, ()):
        operator = find(node.domain, node.op_type)
        if operator is not None and (index in operator.weights or (statistics and index in operator.statistics)):
            return True
        further = node.outputs if depth and node.op_type in VIEWS else ()
        if any(feeds_weight(o, readers, statistics, depth - 1) for o in further):
            return True
    return False


def assign_roles(graph: Graph) -> None:
    """Say of each constant whether it is a parameter, a buffer, or numbers that only the host reads."""
    readers = uses(graph)
    for part in graph.subgraphs():
        for constant in part.constants.values():
            constant.kind = role(constant, readers, part.outputs)


def role(constant: Constant, readers: dict[str, list[tuple[Node, int]]], outputs: tuple[str, ...]) -> str:
    """`parameter`, `buffer` or `host`; what nobody reads is not kept in the module."""
    if constant.code == TEXT or (constant.name not in readers and constant.name not in outputs):
        return "host"
    if constant.code:
        return "buffer"
    slots = [(n, i, find(n.domain, n.op_type)) for n, i in readers.get(constant.name, ())]
    kinds = {op.kind(i) if op else "Value" for _, i, op in slots}
    statistics = any(op is not None and i in op.statistics for _, i, op in slots)
    count = constant.array.size
    if not constant.dtype.is_floating_point or statistics:
        return "host" if kinds <= {"Host"} or (count <= 64 and not constant.initializer) or count == 1 else "buffer"
    if slots and kinds == {"Host"}:
        return "host"
    if not finite(constant.array):
        return "host" if count == 1 else "buffer"
    if neutral(constant, {n.op_type for n, _, _ in slots}):
        return "buffer"
    formula = count == 1 and {n.op_type for n, _, _ in slots} <= FORMULAS and generated(constant.name)
    if feeds_weight(constant.name, readers) and (count > 1 or (constant.initializer and not formula)):
        return "parameter"
    exponent = any(n.op_type == "Pow" and i == 1 for n, i, _ in slots) and count == 1
    if constant.initializer and not formula and not exponent:
        return "parameter"
    # some exporters, Paddle's for one, write weights as Constant nodes under the weights' own names
    if count > 1 and not generated(constant.name) and {n.op_type for n, _, _ in slots} <= FORMULAS | VIEWS:
        return "parameter"
    return "host" if count <= 64 else "buffer"


def generated(name: str) -> bool:
    """Whether an exporter made this name up."""
    return len(name) < 500 and GENERATED.fullmatch(name) is not None


def neutral(constant: Constant, readers: set[str]) -> bool:
    """Whether this is the scale of ones or the shift of zeros of a normalisation without weights of its own."""
    if not all("Normalization" in op_type for op_type in readers) or not generated(constant.name):
        return False
    return constant.array.size > 0 and (bool((constant.array == 0).all()) or bool((constant.array == 1).all()))


def with_floats(graph: Graph, dtype: torch.dtype) -> None:
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
