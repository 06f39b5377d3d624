"""Random inputs that fit a graph, and random weights for files that hold constant ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.graph import uses
from pccompile.frontends.onnx.names import lookup
from pccompile.frontends.onnx.registry import Node

if TYPE_CHECKING:
    from pccompile.frontends.onnx.module import InputType, OnnxModule

Readers = dict[str, list[tuple[Node, int]]]
BATCH = 2
GUESSES = (8, 64, 16, 32, 128, 224, 512, 1024, 4096, 16000)
"""Sizes for what a file leaves open, tried until the graph runs."""

AUDIO = ("audio", "wave", "wav", "signal", "pcm", "samples", "speech")
TIME = ("seq", "time", "len", "frame")
LENGTHS = ("len", "lens", "length", "lengths")

PASSING = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Expand", "Clip"})


def example_inputs(module: OnnxModule, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs on which `module` runs: floats from N(0, 1), indices within their tables, masks of ones."""
    absent = sorted(set(shapes) - {t.name for t in module.input_types})
    if absent:
        raise CompileError(f"there is no input {absent[0]}; inputs are {', '.join(t.name for t in module.input_types)}")
    readers = uses(module.graph)
    types = [t for t in module.input_types if t.name not in shapes]
    for entry in module.input_types:
        if entry.form != "tensor":
            hint = "cut the model where it has become tensors of numbers, or run it without compiling it"
            raise CompileError(f"input {entry.name} is {entry.form}, which carries no gradient", hint=hint)
    free = any(not isinstance(s, int) for t in types for s in t.shape or ("?",))
    failure: CompileError | None = None
    tried: dict[str, list[int]] = {}
    for batch, guess in itertools.product((BATCH, 1), GUESSES if free else GUESSES[:1]):
        tried = {t.name: list(shapes.get(t.name) or sizes(t, guess, batch)) for t in module.input_types}
        generator = torch.Generator().manual_seed(seed)
        inputs = tuple(draw(module, entry, tried, readers, generator) for entry in module.input_types)
        try:
            with torch.no_grad():
                module(*inputs)
            return inputs
        except CompileError as error:
            failure = failure or error
        if not free:
            break
    assert failure is not None
    raise CompileError(
        f"no input sizes were found that the model runs on, the last tried being {tried}: {failure.problems[0].what}",
        failure.problems[0].where,
        hint="give the sizes: shapes={input name: [...]}",
    )


def sizes(entry: InputType, guess: int, batch: int) -> list[int]:
    """A size for each axis: what the file says, small numbers for batches and channels, `guess` for the rest."""
    name = entry.name.lower()
    if any(word in name for word in AUDIO):
        guess = max(guess * 64, 4000)
    if entry.shape is None:
        return [batch, guess]
    result = []
    for axis, size in enumerate(entry.shape):
        label = size.lower() if isinstance(size, str) else ""
        if isinstance(size, int):
            result.append(size)
        elif "batch" in label or axis == batch_axis(entry):
            result.append(batch)
        elif axis == 1 and len(entry.shape) == 4 and ("channel" in label or label == "?"):
            result.append(3)
        elif axis >= 2 and len(entry.shape) == 4:
            result.append(max(guess, 64))
        else:
            result.append(guess)
    return result


def batch_axis(entry: InputType) -> int:
    """The axis that samples lie along, as far as the file tells; -1 if none is open.

    The first one, unless its name says time; the second of a recurrent state, whose first axis has a fixed size.
    """
    shape = entry.shape or ("?",)
    named = [i for i, s in enumerate(shape) if isinstance(s, str) and "batch" in s.lower()]
    if named:
        return named[0]
    if len(shape) == 0 or any(not isinstance(shape[0], int) and w in str(shape[0]).lower() for w in TIME):
        return -1
    if not isinstance(shape[0], int):
        return 0
    return 1 if len(shape) == 3 and not isinstance(shape[1], int) and isinstance(shape[2], int) else -1


def draw(
    module: OnnxModule,
    entry: InputType,
    shapes: Mapping[str, list[int]],
    readers: Readers,
    generator: torch.Generator,
) -> Tensor:
    """Random numbers for one input."""
    name, shape = entry.name.lower(), shapes[entry.name]
    if "mask" in name:
        return torch.ones(shape, dtype=entry.dtype)
    if entry.dtype.is_floating_point or entry.dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(entry.dtype)
    if name.endswith(LENGTHS):
        others = [s[1] for n, s in shapes.items() if n != entry.name and len(s) > 1]
        return torch.full(shape, max(others, default=1), dtype=entry.dtype)
    limit = 2 if entry.dtype is torch.bool else index_range(module, entry.name, readers)
    return torch.randint(0, limit, shape, generator=generator).to(entry.dtype)


def index_range(module: OnnxModule, name: str, readers: Readers, depth: int = 6) -> int:
    """How far an integer input may go: the length of the shortest table that it indexes, or 2."""
    limits = []
    for node, position in readers.get(name, ()):
        if node.op_type == "Gather" and position == 1:
            size = table_size(module, node)
            limits.extend([size] if size else [])
        elif node.op_type in PASSING and position == 0 and depth:
            limits.extend(index_range(module, o, readers, depth - 1) for o in node.outputs)
    return max(1, min(limits)) if limits else 2


def table_size(module: OnnxModule, node: Node) -> int:
    """The length of the axis that a Gather picks from, where it picks from a constant; else 0."""
    for part in module.graph.subgraphs():
        table = part.constants.get(node.inputs[0])
        if table is not None:
            shape = lookup(module, table.path).shape if table.path else table.array.shape
            return int(shape[node.get("axis", 0)]) if shape else 0
    return 0


def randomize(module: OnnxModule, seed: int = 0) -> None:
    """Draw anew, in place, the weights that are one number throughout, so that gradients through them mean something.

    Matrices and kernels get N(0, 2 / fan in), scales of normalisations N(1, 0.1²), the rest N(0, 0.1²); statistics keep
    their means near 0 and variances near 1.
    """
    generator = torch.Generator().manual_seed(seed)
    readers = uses(module.graph)
    with torch.no_grad():
        for part in module.graph.subgraphs():
            for constant in part.constants.values():
                tensor = lookup(module, constant.path) if constant.path else None
                if (
                    tensor is None
                    or not tensor.is_floating_point()
                    or tensor.numel() < 2
                    or tensor.min() != tensor.max()
                ):
                    continue
                slot = next(
                    ((n.op_type, i) for n, i in readers.get(constant.name, ()) if "Normalization" in n.op_type), None
                )
                if constant.kind == "parameter" or (slot and slot[0] == "BatchNormalization"):
                    tensor.copy_(redrawn(tensor, slot[1] if slot else -1, generator))


def redrawn(tensor: Tensor, slot: int, generator: torch.Generator) -> Tensor:
    """Random numbers for a weight of this shape; `slot` is its place among a normalisation's inputs, if it is one."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
    if slot == 1:
        return 1 + 0.1 * noise
    if slot == 4:
        return 1 + 0.1 * noise.abs()
    if tensor.dim() < 2 or slot > 1:
        return 0.1 * noise
    fan_in = tensor[0].numel() if tensor.dim() > 2 else max(tensor.shape)
    return noise * math.sqrt(2.0 / fan_in)
