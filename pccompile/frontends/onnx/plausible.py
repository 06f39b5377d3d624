"""Numbers for a file's inputs that fit what reads them: indices within tables, lengths, masks, rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pccompile.frontends.onnx.graph import uses
from pccompile.frontends.onnx.input_types import InputType
from pccompile.frontends.onnx.open_sizes import constant_shapes
from pccompile.frontends.onnx.registry import Node, find
from pccompile.frontends.onnx.runner import Runner

PASSING = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Expand", "Clip"})
"""Operators through which an index stays one."""

COMPARING = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
FILLS = ("ones", "random", "zeros")
"""What is tried for whole numbers and booleans that index nothing; masks of ones hide nothing as a rule."""


class Plausible:
    """What the readers of a file's inputs say about their numbers."""

    def __init__(self, module: Runner) -> None:
        self.readers = uses(module.graph)
        self.shapes = constant_shapes(module)
        self.numbers = {
            n: c.array for p in module.graph.subgraphs() for n, c in p.constants.items() if c.array.size == 1
        }
        self.limits = {t.name: self._limit(t.name) for t in module.input_types}

    def open_fills(self, inputs: Sequence[InputType]) -> tuple[str, ...]:
        """The fills to try: one where nothing is to be chosen."""
        chosen = [
            t for t in inputs if not (t.dtype.is_floating_point or t.dtype.is_complex) and not self.limits[t.name]
        ]
        return FILLS if chosen else FILLS[:1]

    def draw(self, entry: InputType, shape: Sequence[int], size: int, fill: str, generator: torch.Generator) -> Tensor:
        """Numbers for one input; `size` is what stands for sizes that the file leaves open."""
        if entry.dtype.is_floating_point or entry.dtype.is_complex:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float32).to(entry.dtype)
            return torch.ones_like(drawn) if self._masks(entry.name) else drawn
        if limit := self.limits[entry.name]:
            return torch.randint(0, limit, tuple(shape), generator=generator).to(entry.dtype)
        definite = self._number(entry.name, size)
        if definite is not None:
            return torch.full(tuple(shape), definite, dtype=entry.dtype)
        if fill == "random":
            return torch.randint(0, 2, tuple(shape), generator=generator).to(entry.dtype)
        if fill == "zeros":
            return torch.zeros(tuple(shape), dtype=entry.dtype)
        return torch.ones(tuple(shape), dtype=entry.dtype)

    def _limit(self, name: str, depth: int = 8) -> int:
        """How far an index may go: the length of the shortest axis that it points into; 0 for what is no index."""
        limits = []
        for node, position in self.readers.get(name, ()):
            if size := self._pointed_into(node, position):
                limits.append(size)
            elif not depth or not node.outputs:
                continue
            elif node.op_type in PASSING and position == 0:
                limits.append(self._limit(node.outputs[0], depth - 1))
            elif node.op_type in ("Add", "Sub") and len(node.inputs) == 2:
                offset = self.numbers.get(node.inputs[1 - position])
                below = self._limit(node.outputs[0], depth - 1)
                if offset is not None and below:
                    limits.append(max(1, below - abs(int(offset.reshape(-1)[0]))))
        return min([n for n in limits if n], default=0)

    def _pointed_into(self, node: Node, position: int) -> int:
        """The length of the axis that input `position` of a node points into, where a constant has it; else 0."""
        shape = self.shapes.get(node.inputs[0], ())
        axis = node.get("axis", 0)
        match node.op_type, position:
            case ("Gather" | "GatherElements" | "ScatterElements", 1) if -len(shape) <= axis < len(shape):
                return int(shape[axis])
            case ("GatherND" | "ScatterND", 1) if shape:
                return min(shape)
            case ("EmbedLayerNormalization", 0 | 1) if len(node.inputs) > 2 + 2 * position:
                table = self.shapes.get(node.inputs[2 if position == 0 else 4], ())
                return table[0] if table else 0
            case ("OneHot", 0) if node.inputs[1] in self.numbers:
                return int(self.numbers[node.inputs[1]].reshape(-1)[0])
        return 0

    def _number(self, name: str, size: int, depth: int = 4) -> int | None:
        """What a whole number that is no index has to be: a size, a length, or what it is compared with; else None."""
        for node, position in self.readers.get(name, ()):
            operator = find(node.domain, node.op_type)
            if operator is not None and (operator.kind(position) == "Host" or _is_length(node, position)):
                return size
            if node.op_type in COMPARING and len(node.inputs) == 2:
                other = self.numbers.get(node.inputs[1 - position])
                if other is not None:
                    return int(other.reshape(-1)[0])
            if depth and node.op_type in PASSING and position == 0 and node.outputs:
                number = self._number(node.outputs[0], size, depth - 1)
                if number is not None:
                    return number
        return None

    def _masks(self, name: str, depth: int = 4) -> bool:
        """Whether a floating-point input is a mask: it is taken from 1, as in 1 − mask."""
        for node, position in self.readers.get(name, ()):
            if node.op_type == "Sub" and position == 1:
                number = self.numbers.get(node.inputs[0])
                if number is not None and float(number.reshape(-1)[0]) == 1.0:
                    return True
            if (
                depth
                and node.op_type in PASSING
                and position == 0
                and node.outputs
                and self._masks(node.outputs[0], depth - 1)
            ):
                return True
        return False


def _is_length(node: Node, position: int) -> bool:
    """Whether an input says how many steps of each sample count."""
    place = {"LSTM": 4, "GRU": 4, "RNN": 4, "ReverseSequence": 1}.get(node.op_type)
    return position == place and not node.domain


def finite(results: object) -> bool:
    """Whether a model's results hold numbers: floating-point tensors are neither empty nor infinite nor NaN."""
    tensors = [r for r in (results if isinstance(results, tuple) else (results,)) if isinstance(r, Tensor)]
    return all(t.numel() > 0 and bool(t.isfinite().all()) for t in tensors if t.is_floating_point())
