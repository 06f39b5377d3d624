"""Random inputs that fit a graph, and random weights for files that hold constant ones."""

from __future__ import annotations

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

PASSING = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Flatten", "Expand", "Clip"})


def example_inputs(module: OnnxModule, shapes: Mapping[str, Sequence[int]], seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs on which `module` runs: floats from N(0, 1), indices within their tables, masks of ones."""
    absent = sorted(set(shapes) - {t.name for t in module.input_types})
    if absent:
        raise CompileError(f"there is no input {absent[0]}; inputs are {', '.join(t.name for t in module.input_types)}")
    readers = uses(module.graph)
    open_sizes = any(not isinstance(s, int) for t in module.input_types if t.name not in shapes for s in t.shape or ("?",))
    failure: CompileError | None = None
    for guess in GUESSES if open_sizes else GUESSES[:1]:
        generator = torch.Generator().manual_seed(seed)
        inputs = tuple(
            draw(module, entry, shapes.get(entry.name) or sizes(entry, guess), readers, generator)
            for entry in module.input_types
        )
        try:
            with torch.no_grad():
                module(*inputs)
            return inputs
        except CompileError as error:
            failure = failure or error
    assert failure is not None
    tried = [f"{t.name} {list(i.shape)}" for t, i in zip(module.input_types, inputs, strict=True)]
    raise CompileError(
        f"no input sizes were found that the model runs on, the last tried being {', '.join(tried)}: "
        f"{failure.problems[0].what}",
        failure.problems[0].where,
        hint="give the sizes: shapes={input name: [...]}",
    )


def sizes(entry: InputType, guess: int) -> list[int]:
    """A size for each axis: what the file says, 2 for batches, small numbers for channels, `guess` for the rest."""
    if entry.shape is None:
        return [BATCH, guess]
    result = []
    for axis, size in enumerate(entry.shape):
        if isinstance(size, int):
            result.append(size)
        elif "batch" in size.lower() or (axis == 0 and not any(w in size.lower() for w in ("seq", "time", "len"))):
            result.append(BATCH)
        elif axis == 1 and len(entry.shape) == 4 and ("channel" in size.lower() or size == "?"):
            result.append(3)
        elif axis >= 2 and len(entry.shape) == 4 and guess < 64:
            result.append(64)
        else:
            result.append(guess)
    return result


def draw(
    module: OnnxModule, entry: InputType, shape: Sequence[int], readers: Readers, generator: torch.Generator
) -> Tensor:
    """Random numbers for one input."""
    if entry.dtype.is_floating_point or entry.dtype.is_complex:
        if "mask" in entry.name.lower():
            return torch.ones(list(shape), dtype=entry.dtype)
        return torch.randn(list(shape), generator=generator, dtype=torch.float32).to(entry.dtype)
    if "mask" in entry.name.lower():
        return torch.ones(list(shape), dtype=entry.dtype)
    if "len" in entry.name.lower().split("_")[-1]:
        longest = max((s for t in module.input_types if t.dtype is not entry.dtype for s in sizes(t, 8)[1:2]), default=1)
        return torch.full(list(shape), longest, dtype=entry.dtype)
    limit = 2 if entry.dtype is torch.bool else index_range(module, entry.name, readers)
    return torch.randint(0, limit, list(shape), generator=generator).to(entry.dtype)


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
                if tensor is None or not tensor.is_floating_point() or tensor.numel() < 2 or tensor.min() != tensor.max():
                    continue
                slot = next(((n.op_type, i) for n, i in readers.get(constant.name, ()) if "Normalization" in n.op_type), None)
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
