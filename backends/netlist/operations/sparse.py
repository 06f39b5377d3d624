"""Synapses one by one, each with an entry of a parameter as its weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.format import Projection, Tensors
from pccompile.backends.netlist.operations.base import (
    Change,
    LearningRule,
    Message,
    Operation,
    Source,
    flat,
    most,
    out_of_range,
    size,
    wide,
)
from pccompile.backends.netlist.operations.synapse_list import SparseMap, Synapses


class Sparse(Operation):
    """post[index_0s] += w_s pre[index_1s], w_s = param.flat[elements_s] (elements default to 0, 1, 2 …)."""

    name = "sparse"
    needs, may = ("index", "param"), ("elements",)
    rule = "sparse"

    def problems(self) -> Iterator[str]:
        post, pre = map(size, self.ends)
        yield from misfit(self.p, post, pre, self.param.size, self.tensors)

    def message(self) -> Message:
        target, source = wide(self.index)[[1, 0] if self.p.transpose else [0, 1]]
        elements = None if self.elements is None else wide(self.elements)
        weighted = SparseMap(target, source, (self.post.size, self.pre.size), elements)

        def apply(x: Tensor, w: Tensor | None) -> Tensor:
            assert w is not None
            return self.shaped(weighted(flat(x), w))

        return apply

    def listed(self) -> Synapses:
        return listed(self.p, self.tensors)

    def count(self) -> int:
        return int(self.index.shape[1])

    def most_terms(self) -> int:
        return most(self.index[1 if self.p.transpose else 0])

    def sent(self, inside: np.ndarray) -> np.ndarray:
        target, source = self.index[[1, 0] if self.p.transpose else [0, 1]]
        return np.bincount(source[inside.reshape(-1)[target]], minlength=self.pre.size)

    def first_read(self) -> tuple[np.ndarray, int] | None:
        if self.p.transpose:
            return None
        first = np.full(self.post.size, self.pre.size)
        np.minimum.at(first, self.index[0], self.index[1])
        return first, self.index.size

    def stored(self, where: np.ndarray, count: int) -> np.ndarray:
        at = where[self.index[1 if self.p.transpose else 0]]
        entry = np.arange(len(at)) if self.elements is None else self.elements.reshape(-1)
        held = np.zeros((count, *self.param.shape), dtype=bool)
        held.reshape(count, -1)[at, entry] = True
        return held

    def is_single_synapses(self) -> bool:
        return self.p.elements is not None

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        at, of = (1, 0) if self.p.transpose else (0, 1)
        index, elements = source(self.p.index), "" if self.p.elements is None else f"[{source(self.p.elements)}]"
        return f"scattered({self.post.size}, {index}[{at}], {x}[{index}[{of}]] * ({operand}).ravel(){elements})"

    def nengo_transform(self, source: Source) -> str | None:
        order = "[::-1]" if self.p.transpose else ""
        elements = "" if self.p.elements is None else f"[{source(self.p.elements)}]"
        weights = f"{self.scale()}{source(self.p.param)}.ravel(){elements}"
        return f"sparse(({self.post.size}, {self.pre.size}), *{source(self.p.index)}{order}, {weights})"


class Paired(LearningRule):
    """Δ param.flat[elements_s] += rate post[index_0s] pre[index_1s], index and elements of `via`."""

    name = "sparse"
    operation = Sparse.name
    takes_via = True

    def problems(self) -> Iterator[str]:
        yield from misfit(self.wiring, self.post.size, self.pre.size, self.param.size, self.tensors)

    def change(self) -> Change:
        via = self.wiring
        target, source = wide(self.tensors[str(via.index)]).contiguous()
        elements = None if via.elements is None else wide(self.tensors[via.elements])
        left, right = torch.empty(len(target), dtype=torch.float64), torch.empty(len(target), dtype=torch.float64)

        def apply(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
            assert pre is not None
            total = room.zero_().view(-1)
            for x, e in zip(flat(pre), flat(post), strict=True):
                torch.index_select(e, 0, target, out=left)
                torch.index_select(x, 0, source, out=right)
                if elements is None:
                    total.addcmul_(left, right)
                else:
                    total.index_add_(0, elements, left.mul_(right))
            return room

        return apply

    def synapses(self) -> Synapses:
        return listed(self.wiring, self.tensors).by_entry()

    def most_terms(self) -> int:
        elements = self.wiring.elements
        return 1 if elements is None else int(np.bincount(self.tensors[elements].astype(np.int64)).max(initial=0))

    def products(self) -> int:
        return int(self.tensors[str(self.wiring.index)].shape[1])

    def numpy_source(self, e: str, x: str, source: Source) -> str:
        entries = math.prod(self.param.shape)
        index = source(self.wiring.index)
        places = f"np.arange({entries})" if self.wiring.elements is None else source(self.wiring.elements)
        return f"scattered({entries}, {places}, {e}[{index}[0]] * {x}[{index}[1]])"


def misfit(p: Projection, targets: int, sources: int, entries: int, tensors: Tensors) -> Iterator[str]:
    """What is wrong with synapses one by one: of units that are not there, or entries of the parameter."""
    index = tensors.get(str(p.index))
    if index is None or index.ndim != 2 or index.shape[0] != 2 or index.dtype.kind != "i":
        yield f"index {p.index} is not two rows of whole numbers"
        return
    yield from out_of_range("index of post", index[0], 0, targets)
    yield from out_of_range("index of pre", index[1], 0, sources)
    if p.elements is None:
        if entries != index.shape[1]:
            yield f"{index.shape[1]} synapses, and {entries} entries of the parameter"
        return
    elements = tensors.get(p.elements)
    if elements is None or elements.shape != (index.shape[1],) or elements.dtype.kind != "i":
        yield f"elements {p.elements} are not {index.shape[1]} whole numbers"
        return
    yield from out_of_range("elements", elements, 0, entries)


def listed(p: Projection, tensors: Tensors) -> Synapses:
    """The synapses that the tables of a projection list."""
    post, pre = tensors[str(p.index)].astype(np.int64)
    return Synapses(post, pre, np.arange(len(post)) if p.elements is None else tensors[p.elements].astype(np.int64))
