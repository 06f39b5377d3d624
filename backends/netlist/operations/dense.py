"""Rows of units through one matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.operations.base import Change, LearningRule, Message, Operation, Shape, Source, size
from pccompile.backends.netlist.operations.synapse_list import Synapses

LARGEST = 2**20
"""The most entries of a sparse transform in Nengo that repeats a matrix for each row."""


class Dense(Operation):
    """post_ro = Σ_i param_oi pre_ri, rows r are all axes but the last."""

    name = "dense"
    needs = ("param",)
    rule = "outer"
    matrix = True

    def problems(self) -> Iterator[str]:
        yield from misfit(self.param.shape, *self.ends)

    def message(self) -> Message:
        transpose = self.p.transpose

        def multiplied(x: Tensor, w: Tensor | None) -> Tensor:
            assert w is not None
            w = w if transpose else w.t()
            return self.shaped(x.reshape(x.shape[0], -1, w.shape[0]) @ w)

        return multiplied

    def listed(self) -> Synapses:
        return matrix_synapses(size(self.ends[0][:-1]), self.param.shape)

    def count(self) -> int:
        return size(self.ends[0]) * size(self.param.shape[1:])

    def most_terms(self) -> int:
        return int(self.param.shape[0 if self.p.transpose else 1])

    def sent(self, inside: np.ndarray) -> np.ndarray:
        shape = self.param.shape
        rows = inside.reshape(-1, shape[1 if self.p.transpose else 0]).sum(1)
        return np.repeat(rows, shape[0 if self.p.transpose else 1])

    def stored(self, where: np.ndarray, count: int) -> np.ndarray:
        on = cores_of_channels(where, self.post.shape, len(self.post.shape) - 1, count)
        shape = (count, 1, on.shape[1]) if self.p.transpose else (*on.shape, 1)
        return np.broadcast_to(on.reshape(shape), (count, *self.param.shape))

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        return f"dense({x}, {operand}, {self.p.transpose})"

    def nengo_transform(self, source: Source) -> str | None:
        scale, to = self.scale(), self.post.size
        w = source(self.p.param) + (".T" if self.p.transpose else "")
        o, i = self.param.shape[:: -1 if self.p.transpose else 1]
        if to == o:
            return f"nengo.Dense({(o, i)}, init={scale}{w})"
        return f"repeated({scale}{w}, {to // o})" if self.pre.size * o <= LARGEST else None


class Outer(LearningRule):
    """Δ param_oi = rate Σ_r post_ro pre_ri."""

    name = "outer"
    operation = Dense.name

    def problems(self) -> Iterator[str]:
        yield from misfit(self.param.shape, self.post.shape, self.pre.shape)

    def change(self) -> Change:
        def products(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
            assert pre is not None
            rows, columns = room.shape
            return torch.mm(post.reshape(-1, rows).t(), pre.reshape(-1, columns), out=room)

        return products

    def synapses(self) -> Synapses:
        kernel = self.param.shape
        return matrix_synapses(self.post.size // kernel[0], kernel).by_entry()

    def products(self) -> int:
        kernel = self.param.shape
        return int(self.post.size // kernel[0] * math.prod(kernel))

    def numpy_source(self, e: str, x: str, source: Source) -> str:
        return f"outer({e}, {x}, {self.param.shape})"


def misfit(param: Shape, post: Shape, pre: Shape) -> Iterator[str]:
    """What is wrong with a matrix between the last axes of two shapes."""
    if len(param) != 2 or not (post and pre) or (post[-1], pre[-1]) != param or post[:-1] != pre[:-1]:
        yield f"a matrix {list(param)} does not lead from {list(pre)} to {list(post)}"


def matrix_synapses(rows: int, shape: Shape) -> Synapses:
    """The synapses of so many rows through a matrix."""
    row, out, into = (a.reshape(-1) for a in np.indices((rows, *shape)))
    return Synapses(row * shape[0] + out, row * shape[1] + into, out * shape[1] + into)


def cores_of_channels(where: np.ndarray, shape: Shape, axis: int, count: int) -> np.ndarray:
    """Whether a core has units at each place along an axis, `[count, length]`, for the core of each unit."""
    lies = np.moveaxis(where.reshape(shape), axis, 0).reshape(shape[axis], -1)
    on = np.zeros((count, shape[axis]), dtype=bool)
    on[lies.reshape(-1), np.repeat(np.arange(shape[axis]), lies.shape[1])] = True
    return on
