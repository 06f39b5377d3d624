"""Synapses one by one, in columns; and as a map that is applied to states."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Synapses:
    """Synapses in columns of flat numbers; `None` for a column that they do not have.

    post: the unit, or the entry of a parameter, that is reached. pre: the unit that is read. other: what it is
    multiplied with, an entry of the parameter of a projection, a unit of the second population of a rule.
    winner, slot: the synapse carries nothing unless this unit of a select population chose this slot.
    """

    post: np.ndarray
    pre: np.ndarray
    other: np.ndarray | None = None
    winner: np.ndarray | None = None
    slot: np.ndarray | None = None

    def by_entry(self) -> Synapses:
        """Those of a projection with a parameter as a rule sees them: what it adds up for each entry."""
        assert self.other is not None
        return Synapses(self.other, self.post, self.pre)

    def sorted(self) -> Synapses:
        """The same synapses in the order of `post`, otherwise as they were."""
        order = np.argsort(self.post, kind="stable")
        columns = (None if c is None else c[order] for c in (self.other, self.winner, self.slot))
        return Synapses(self.post[order], self.pre[order], *columns)

    def rows(self, size: int) -> list[range]:
        """For each of `size` units, the numbers of the synapses that reach it; they are sorted."""
        ends = np.searchsorted(self.post, np.arange(size + 1)).tolist()
        return [range(a, b) for a, b in itertools.pairwise(ends)]


class SparseMap:
    """A sparse map, its pairs of units sorted by target once; `elements` say which weight each pair has."""

    def __init__(self, target: Tensor, source: Tensor, shape: tuple[int, int], elements: Tensor | None = None) -> None:
        order = torch.argsort(target, stable=True)
        ordered = bool((order == torch.arange(len(order))).all())
        self.shape, self.target, self.source = shape, target[order], source[order]
        self.elements = elements[order] if elements is not None else None if ordered else order
        kind = torch.int32 if len(order) < 2**31 else torch.int64
        ends = torch.bincount(target, minlength=shape[0]).cumsum(0)
        self.rows = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).to(kind)
        self.columns = self.source.to(kind)
        self.held: tuple[Tensor, int] | None = None

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """What `[replicas, sources]` sends, `[replicas, targets]`."""
        if self.held is None or self.held[0] is not w or self.held[1] != w._version:
            self.values = self._weights(w.reshape(-1))
            self.matrix = self._matrix() if torch.backends.mkl.is_available() else None
            self.held = (w, w._version)
        if self.matrix is not None:
            return (self.matrix @ x.t()).t()
        return x.new_zeros(x.shape[0], self.shape[0]).index_add_(1, self.target, x[:, self.source] * self.values)

    def _weights(self, w: Tensor) -> Tensor:
        if self.elements is None:
            return w
        room = self.values if self.held is not None else w.new_empty(len(self.elements))
        return torch.index_select(w, 0, self.elements, out=room)

    def _matrix(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compressed rows are called a beta feature
            return torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape, check_invariants=False)
