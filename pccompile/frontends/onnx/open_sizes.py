"""Sizes for what a file leaves open: one a symbol, fixed where a weight meets it, else the smallest that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.graph import OnnxGraph, uses
from pccompile.frontends.onnx.input_types import InputType
from pccompile.frontends.onnx.learned import feature_count
from pccompile.frontends.onnx.names import lookup
from pccompile.frontends.onnx.registry import Node
from pccompile.frontends.onnx.runner import Runner
from pccompile.frontends.onnx.scores import LEARNED

BATCH = 2
FIRST = 8
"""The size that is tried first: most graphs run on it, and smaller ones leave kernels and heads little to see."""

GROWING = (
    *(
        2,
        3,
        4,
        5,
        6,
        7,
        9,
        10,
        11,
        12,
        14,
        16,
        20,
        24,
        28,
        32,
        40,
        48,
        56,
        64,
        80,
        96,
        112,
        128,
        160,
        192,
        224,
        256,
        299,
    ),
    *(320, 384, 400, 448, 480, 512, 640, 768, 800, 1024, 1280, 1600, 2048, 3000, 4096, 8000, 8192, 16000, 16384, 32000),
)
"""The sizes that are tried then, in order, those that patches, strides and windows divide among them."""

TIME = ("seq", "time", "len", "frame")
KEEPING = frozenset(
    (
        *("Identity", "Cast", "Relu", "Tanh", "Sigmoid", "Dropout", "Neg", "Abs", "Sqrt", "Log", "Exp", "Clip"),
        *("Scaler", "Normalizer", "Binarizer", "Imputer"),
    )
)
"""Operators whose result has the shape of their input."""


class OpenSizes:
    """The open axes of a file's inputs: which share a symbol, which lie along the batch, and which a weight fixes."""

    def __init__(self, module: Runner, shapes: Mapping[str, Sequence[int]]) -> None:
        graph, inputs = module.graph, module.input_types
        self.inputs, self.given = inputs, shapes
        readers = uses(graph)
        self.shapes = constant_shapes(module)
        self.ranks: dict[str, int] = {}
        self.fixed: dict[object, int] = {}
        self.batch: set[object] = set()
        seen: set[object] = set()
        for entry in inputs:
            for node, index in _met(entry.name, readers):
                self._learn_from(entry, node, index)
        for entry in inputs:
            if entry.name in shapes:
                self._agree(entry, shapes[entry.name])
        for entry in inputs:
            along = batch_axis(entry)
            for axis, key in enumerate(self.keys(entry)):
                if axis == along and key not in seen and not isinstance(key, int):
                    self.batch.add(key)
                seen.add(key)
        numbers = sorted(_reshaped(graph))
        named = {n for n in numbers if n <= GROWING[-1]}
        self.growing = [FIRST, *sorted({*GROWING, *named} - {FIRST})]

    @property
    def free(self) -> bool:
        """Whether any size is left to be found."""
        open_ = {k for e in self.inputs if e.name not in self.given for k in self.keys(e) if not isinstance(k, int)}
        return bool(open_ - set(self.fixed))

    def keys(self, entry: InputType) -> list[object]:
        """What decides each axis of an input: a size, the name of a symbol, or the axis itself where it has none."""
        shape = entry.shape
        if shape is None:
            shape = ("?",) * self.ranks.get(entry.name, 2)
        return [(entry.name, i) if s == "?" else s for i, s in enumerate(shape)]

    def tried(self) -> Iterator[tuple[int, dict[str, list[int]]]]:
        """Sizes for every input, smaller ones first, with the number that stands for what is open."""
        for batch in (BATCH, 1):
            for guess in self.growing:
                yield guess, {e.name: self.sizes(e, guess, batch) for e in self.inputs}
                if not self.free:
                    break

    def sizes(self, entry: InputType, guess: int, batch: int) -> list[int]:
        """The sizes of one input."""
        if entry.name in self.given:
            return list(self.given[entry.name])
        return [self._size(key, guess, batch) for key in self.keys(entry)]

    def _size(self, key: object, guess: int, batch: int) -> int:
        if isinstance(key, int):
            return key
        if key in self.fixed:
            return self.fixed[key]
        if key in self.batch or (isinstance(key, str) and "batch" in key.lower() and "+" not in key):
            return batch
        if isinstance(key, str) and "+" in key:  # exporters write past + present
            parts = [p.strip() for p in key.split("+")]
            return sum(int(p) if p.isdigit() else self._size(p, guess, batch) for p in parts if p)
        return guess

    def _agree(self, entry: InputType, sizes: Sequence[int]) -> None:
        """What the user said of one input holds for its symbols everywhere."""
        for key, size in zip(self.keys(entry), sizes, strict=False):
            if not isinstance(key, int):
                self.fixed[key] = size

    def _learn_from(self, entry: InputType, node: Node, index: int) -> None:
        """What a node that reads an input says of its rank and sizes, by the weight or the numbers that it brings."""
        facts: dict[int, int] = {}
        columns = feature_count(node, index) if node.domain == LEARNED else 0
        if columns:
            self.ranks.setdefault(entry.name, 2)
            keys = self.keys(entry)
            if len(keys) == 2 and isinstance(keys[1], int) and keys[1] != columns:
                what = f"input {entry.name} is declared with {keys[1]} columns"
                what += f", and {node.op_type} has numbers for {columns}"
                raise CompileError(what, node.location, "declare the input with that size in the file")
            facts[1] = columns
        weight = self.shapes.get(node.inputs[1]) if len(node.inputs) > 1 else None
        match node.op_type:
            case "Conv" | "ConvTranspose" if index == 0 and weight and len(weight) > 1:
                self.ranks.setdefault(entry.name, len(weight))
                facts[1] = weight[1] * node.get("group", 1) if node.op_type == "Conv" else weight[0]
            case "Gemm" if index == 0 and weight and len(weight) == 2 and not node.get("transA", 0):
                self.ranks.setdefault(entry.name, 2)
                facts[1] = weight[1 if node.get("transB", 0) else 0]
            case "MatMul" if index == 0 and weight and len(weight) > 1:
                facts[-1] = weight[-2]
            case "LSTM" | "GRU" | "RNN" if index == 0 and weight:
                self.ranks.setdefault(entry.name, 3)
                facts[2] = weight[-1]
            case "BatchNormalization" | "InstanceNormalization" if index == 0 and weight:
                facts[1] = weight[0]
            case "LayerNormalization" if index == 0 and weight and node.get("axis", -1) == -1:
                facts[-1] = weight[-1]
            case "Add" | "Sub" | "Mul" | "Div" if len(node.inputs) == 2:
                other = self.shapes.get(node.inputs[1 - index], ())
                facts |= {-1 - i: s for i, s in enumerate(reversed(other)) if s > 1}
        keys = self.keys(entry)
        for axis, size in facts.items():
            if -len(keys) <= axis < len(keys) and not isinstance(keys[axis], int):
                self.fixed.setdefault(keys[axis], size)


def constant_shapes(module: Runner) -> dict[str, tuple[int, ...]]:
    """The shapes of all constants by name."""
    constants = {n: c for part in module.graph.subgraphs() for n, c in part.constants.items()}
    return {n: tuple(lookup(module, c.path).shape if c.path else c.array.shape) for n, c in constants.items()}


def _met(name: str, readers: Mapping[str, list[tuple[Node, int]]], depth: int = 8) -> Iterator[tuple[Node, int]]:
    """Who reads a value, directly or behind operators that keep its shape."""
    for node, index in readers.get(name, ()):
        yield node, index
        if depth and node.op_type in KEEPING and index == 0 and node.outputs:
            yield from _met(node.outputs[0], readers, depth - 1)


def _reshaped(graph: OnnxGraph) -> set[int]:
    """Sizes that the file's constant target shapes name, and their products."""
    numbers: set[int] = set()
    for part in graph.subgraphs():
        for node in part.nodes:
            target = part.constants.get(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
            if target is None or target.array.size == 0 or target.array.size > 8:
                continue
            product = 1
            for size in target.array.reshape(-1).tolist():
                if size > 1:
                    product *= int(size)
                    numbers |= {int(size), product}
    return numbers


def batch_axis(entry: InputType) -> int:
    """The axis that samples lie along, as far as the file tells; -1 if none is open.

    The first one, unless its name says time; the second of a recurrent state, whose first axis has a fixed size.
    """
    shape = entry.shape or ("?",)
    named = [i for i, s in enumerate(shape) if isinstance(s, str) and re.search("batch", s, re.IGNORECASE)]
    if named:
        return named[0]
    if len(shape) == 0 or any(not isinstance(shape[0], int) and w in str(shape[0]).lower() for w in TIME):
        return -1
    if not isinstance(shape[0], int):
        return 0
    return 1 if len(shape) == 3 and not isinstance(shape[1], int) and isinstance(shape[2], int) else -1
