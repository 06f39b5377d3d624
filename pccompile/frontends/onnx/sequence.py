"""Operators on sequences of tensors, which are Python lists here, and on optional values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host, Value, as_tensor, host_of
from pccompile.limits import spend


@operator("SequenceConstruct")
def sequence_construct(node: Node, *items: Tensor) -> list[Tensor]:
    """A sequence of the tensors."""
    return [list(items)]  # type: ignore[list-item]


@operator("SequenceEmpty")
def sequence_empty(node: Node) -> list[Any]:
    """A sequence without elements."""
    return [[]]


@operator("SequenceAt")
def sequence_at(node: Node, items: Value, position: Host) -> Value:
    """One element of a sequence."""
    item: Value = sequence(items)[position.item()]
    return item


@operator("SequenceLength")
def sequence_length(node: Node, items: Value) -> Host:
    """The number of elements of a sequence."""
    return host_of(len(sequence(items)))


@operator("SequenceInsert")
def sequence_insert(node: Node, items: Value, item: Value, position: Host | None = None) -> list[Any]:
    """A sequence with one more element."""
    result = list(sequence(items))
    result.insert(len(result) if position is None else position.item(), item)
    return [result]


@operator("SequenceErase")
def sequence_erase(node: Node, items: Value, position: Host | None = None) -> list[Any]:
    """A sequence with one element less."""
    result = list(sequence(items))
    result.pop(-1 if position is None else position.item())
    return [result]


@operator("ConcatFromSequence")
def concat_from_sequence(node: Node, items: Value) -> Tensor:
    """The elements of a sequence joined along an old or a new axis."""
    tensors = [as_tensor(i) for i in sequence(items)]
    return (torch.stack if node.get("new_axis", 0) else torch.cat)(tensors, node.get("axis", 0))


@operator("SplitToSequence")
def split_to_sequence(node: Node, x: Tensor, sizes: Host | None = None) -> list[Any]:
    """x in parts along an axis, as a sequence."""
    axis = node.get("axis", 0)
    lengths: Any = 1 if sizes is None else sizes.tolist() if sizes.array.ndim else sizes.item()
    if isinstance(lengths, int) and isinstance(x.shape[axis], int) and lengths > 0:
        spend("steps", x.shape[axis] // lengths, node.op_type)
    parts = list(torch.split(x, lengths, axis))
    return [[p.squeeze(axis) for p in parts] if sizes is None and not node.get("keepdims", 1) else parts]


def sequence(value: Value) -> list[Any]:
    """`value`, which has to be a sequence."""
    if not isinstance(value, list):
        raise CompileError("a sequence is expected")
    return value


@operator("Optional")
def optional(node: Node, value: Value = None) -> list[Any]:
    """The value, which may be missing."""
    return [value]


@operator("OptionalHasElement")
def optional_has_element(node: Node, value: Value = None) -> Host:
    """Whether there is a value."""
    return host_of(value is not None, torch.bool)


@operator("OptionalGetElement")
def optional_get_element(node: Node, value: Value) -> list[Any]:
    """The value, which must not be missing."""
    return [value]
