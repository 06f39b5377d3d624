"""Which of a file's numbers learn: decided by what reads them and by the numbers, never by names.

docs/onnx.md states the rules for readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from pccompile.diagnostics import CompileError, listing, printable
from pccompile.frontends.onnx.formulas import SCALING, written_by_hand
from pccompile.frontends.onnx.graph import Constant, OnnxGraph, last_reads, uses
from pccompile.frontends.onnx.registry import Node, find
from pccompile.frontends.onnx.values import TEXT, Host, product
from pccompile.limits import spend

VIEWS = frozenset({"Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Expand", "Concat"})
"""Operators through which a constant still counts as feeding a weight."""

FORMULAS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Where", "Clip", "Expand", "CastLike"}
    | {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
)
"""Operators in which a number may be part of a formula."""

LARGEST_FOLD = 2**28

Readers = dict[str, list[tuple[Node, int]]]


def fold_constant_shapes(graph: OnnxGraph) -> None:
    """Turn ConstantOfShape nodes that make weights into constants.

    In a file that has more of them than weights, such as the light test networks, they all stand for weights.
    """
    kept_weights = sum(
        c.initializer and c.dtype.is_floating_point and c.array.size > 1 for c in graph.constants.values()
    )
    filled = [n for n in graph.nodes if n.op_type == "ConstantOfShape" and n.inputs[0] in graph.constants]
    emptied = len(filled) >= 8 and len(filled) > kept_weights
    for part in graph.subgraphs():
        readers = uses(part)
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
            shape = tuple(sizes.array.tolist())
            spend("weights", product(shape) * fill.array.itemsize, "making weights of ConstantOfShape", node.location)
            array = np.broadcast_to(fill.array.reshape(-1)[0], shape)  # copied once, when it becomes a tensor
            part.constants[node.outputs[0]] = Constant(node.outputs[0], array, fill.dtype, emptied)
        part.nodes = tuple(kept)
        part.last_reads = last_reads(kept, part.outputs)


def feeds_weight(name: str, readers: Readers, statistics: bool = False, depth: int = 8) -> bool:
    """Whether a value is read as a weight (or a statistic), directly or through operators that only rearrange it."""
    for node, index in readers.get(name, ()):
        if in_slot(node, index, statistics):
            return True
        further = node.outputs if depth and node.op_type in VIEWS else ()
        if any(feeds_weight(o, readers, statistics, depth - 1) for o in further):
            return True
    return False


def in_slot(node: Node, index: int, statistics: bool = False) -> bool:
    """Whether input `index` of a node is a weight (or a statistic)."""
    operator = find(node.domain, node.op_type)
    return operator is not None and (index in operator.weights or (statistics and index in operator.statistics))


def assign_roles(
    graph: OnnxGraph, train: Iterable[str] = (), freeze: Iterable[str] = (), fixed: Collection[str] = ()
) -> None:
    """Say of each constant whether it is a parameter, a buffer, or numbers that only the host reads.

    train, freeze: patterns of names that overrule it; fixed: names of what the user has given numbers for.
    Raises CompileError for a pattern that fits nothing which could learn.
    """
    for scope in scopes(graph):
        part = scope.graph
        for constant in part.constants.values():
            constant.kind = role(constant, scope.readers, part.outputs)
            if constant.kind == "open":
                learns = learnable(constant, scope)
                constant.formula = not learns and constant.initializer
                constant.kind = "parameter" if learns else "host" if constant.array.size <= 64 else "buffer"
            if constant.kind == "parameter" and constant.name in fixed:
                constant.kind = "host" if constant.array.size <= 64 else "buffer"
    overrule(graph, train, "train", "parameter")
    overrule(graph, freeze, "freeze", "buffer")


@dataclass(frozen=True)
class Visible:
    """A graph, who reads its values, and what it sees: the nodes that make values and the constants, outer ones too."""

    graph: OnnxGraph
    readers: Readers
    makers: dict[str, Node]
    constants: dict[str, Constant]


def scopes(graph: OnnxGraph, outer: Visible | None = None) -> Iterator[Visible]:
    """Each graph with what it sees: names hold in a graph and in those inside it, not in those beside it."""
    makers, constants = (outer.makers, outer.constants) if outer else ({}, {})
    makers = {**makers, **{o: n for n in graph.nodes for o in n.outputs if o}}
    visible = Visible(graph, uses(graph), makers, {**constants, **graph.constants})
    yield visible
    for node in graph.nodes:
        for value in node.attributes.values():
            if isinstance(value, OnnxGraph):
                yield from scopes(value, visible)


def overrule(graph: OnnxGraph, patterns: Iterable[str], option: str, kind: str) -> None:
    """Give the constants whose names fit a pattern another role."""
    constants = [c for g in graph.subgraphs() for c in g.constants.values()]
    candidates = [c for c in constants if c.dtype.is_floating_point and not c.code and (c.formula or c.kind != "host")]
    for pattern in patterns:
        chosen = [c for c in candidates if fnmatchcase(c.name, pattern)]
        if not chosen:
            names = listing([printable(c.name, 60) for c in candidates], 10) or "none"
            raise CompileError(
                f"{option}: no constant of the file is called {printable(pattern, 80)}; there are {names}"
            )
        for constant in chosen:
            constant.kind, constant.formula = kind, False


def role(constant: Constant, readers: Readers, outputs: tuple[str, ...]) -> str:
    """`parameter`, `buffer` or `host`, as far as the readers alone decide; else `open`.

    What nobody reads is not kept in the module.
    """
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
    if not constant.initializer and neutral(constant) and all("Normalization" in n.op_type for n, _, _ in slots):
        return "buffer"  # of a normalisation without weights of its own
    return "open"


def learnable(constant: Constant, scope: Visible) -> bool:
    """Whether floating-point numbers are something learned rather than part of a formula."""
    slots = scope.readers.get(constant.name, [])
    if constant.array.size == 1:
        if any(in_slot(n, i) for n, i in slots):
            return True
        return constant.initializer and not any(in_formula(constant, n, i, scope) for n, i in slots)
    if constant.initializer or feeds_weight(constant.name, scope.readers):
        return True
    # some exporters, Paddle's for one, write weights as Constant nodes
    if not slots or not {n.op_type for n, _ in slots} <= FORMULAS | VIEWS:
        return False
    if any(layer_before(n, i, scope) for n, i in slots):
        return True
    return not neutral(constant) and not written_by_hand(constant.array)


def in_formula(constant: Constant, node: Node, index: int, scope: Visible, depth: int = 8) -> bool:
    """Whether input `index` of `node`, a single number, is one that the node's formula prescribes.

    Factors of 0, 1 and 2, a divisor of 1 and an addend of 0 are first values of what is learned.
    """
    if depth and node.op_type in VIEWS and not node.domain:
        inner = [(n, i) for o in node.outputs for n, i in scope.readers.get(o, ())]
        return any(in_formula(constant, n, i, scope, depth - 1) for n, i in inner)
    if node.op_type not in FORMULAS or node.domain or in_slot(node, index):
        return False
    number = float(constant.array.reshape(-1)[0])
    match node.op_type, index:
        case "Mul", _:
            return number not in (0, 1, 2) and written_by_hand(constant.array, SCALING)
        case "Div", 1:
            return number not in (0, 1) and (number.is_integer() or written_by_hand(constant.array, SCALING))
        case ("Add", _) | ("Sub", 1):
            maker = layer_before(node, index, scope)
            bias = maker is not None and width(maker, scope) == 1
            return number != 0 and not bias and written_by_hand(constant.array)
    return written_by_hand(constant.array)


def layer_before(node: Node, index: int, scope: Visible, depth: int = 8) -> Node | None:
    """The operator with weights that makes the other operand of a sum or a product, whose bias or scale this may be."""
    if node.op_type not in ("Add", "Mul") or node.domain or len(node.inputs) != 2:
        return None
    name = node.inputs[1 - index]
    while depth and name in scope.makers:
        maker = scope.makers[name]
        operator = find(maker.domain, maker.op_type)
        if operator is not None and operator.weights and maker.op_type != "Gather":
            return maker
        if maker.op_type not in VIEWS or not maker.inputs:
            return None
        name, depth = maker.inputs[0], depth - 1
    return None


def width(layer: Node, scope: Visible) -> int:
    """How many features an operator with weights makes of each sample; 0 where its weight is no constant."""
    weight = scope.constants.get(layer.inputs[1]) if len(layer.inputs) > 1 else None
    shape: tuple[int, ...] = weight.array.shape if weight is not None else ()
    if len(shape) < 2:
        return 0
    match layer.op_type:
        case "Conv":
            return int(shape[0])
        case "ConvTranspose":
            return int(shape[1]) * int(layer.get("group", 1))
        case "Gemm" if layer.get("transB", 0):
            return int(shape[0])
    return int(shape[-1])


def neutral(constant: Constant) -> bool:
    """Whether these are ones throughout, or zeros."""
    return constant.array.size > 0 and (bool((constant.array == 0).all()) or bool((constant.array == 1).all()))


def finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether there is neither infinity nor NaN."""
    return bool(np.isfinite(array.astype(np.float32) if array.dtype.itemsize < 4 else array).all())
