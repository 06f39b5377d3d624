"""Units read by a table with a row for each: all that a row names, or the one that a select population chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pccompile.backends.netlist.format import Operator
from pccompile.backends.netlist.operations.base import Message, Operation, Source, flat, most, out_of_range, size, wide
from pccompile.backends.netlist.operations.synapse_list import SparseMap, Synapses


class Table(Operation):
    """An operation whose index has a row for each unit of post, −1 being an empty slot."""

    def problems(self) -> Iterator[str]:
        post, pre = map(size, self.ends)
        index = self.index
        if index.ndim != 2 or index.shape[0] != post:
            yield f"index of shape {list(index.shape)} has not a row for each of {post} units"
        yield from out_of_range("index", index, -1, pre)

    def listed(self) -> Synapses:
        rows, slots = np.nonzero(self.index >= 0)
        return Synapses(rows, self.index[rows, slots].astype(np.int64))

    def count(self) -> int:
        return int((self.index >= 0).sum())

    def most_terms(self) -> int:
        if not self.p.transpose:
            return int((self.index >= 0).sum(1).max(initial=0))
        return most(self.index[self.index >= 0])

    def sent(self, inside: np.ndarray) -> np.ndarray:
        inside = inside.reshape(-1)
        if self.p.transpose:
            return self._reached(inside)
        slots = self.index[inside]
        return np.bincount(slots[slots >= 0], minlength=self.pre.size)

    def _reached(self, inside: np.ndarray) -> np.ndarray:
        """For each row, the synapses with units of post that are inside."""
        if self.p.transpose:
            reached: np.ndarray = (np.append(inside, False)[self.index] & (self.index >= 0)).sum(1)
            return reached
        return np.where(inside, (self.index >= 0).sum(1), 0)


class Gather(Table):
    """post_i = Σ_k pre[index_ik]."""

    name: ClassVar[Operator] = "gather"
    needs = ("index",)
    gathers = True

    def message(self) -> Message:
        gathered = self._gathered()
        return lambda x, _: self.shaped(gathered(flat(x)))

    def _gathered(self) -> Callable[[Tensor], Tensor]:
        index = wide(self.index)
        if not self.p.transpose and index.shape[1] == 1 and bool((index >= 0).all()):
            column = index[:, 0]
            return lambda x: x.index_select(1, column)
        rows, slots = torch.nonzero(index >= 0, as_tuple=True)
        columns = index[rows, slots]
        target, source = (columns, rows) if self.p.transpose else (rows, columns)
        synapses = SparseMap(target, source, (self.post.size, self.pre.size))
        ones = torch.ones(len(target), dtype=torch.float64)
        return lambda x: synapses(x, ones)

    def first_read(self) -> tuple[np.ndarray, int] | None:
        if self.p.transpose:
            return None
        return np.where(self.index < 0, self.pre.size, self.index).min(1), self.index.size

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        rows, units = f"*pairs({source(self.p.index)})", "[::-1]" if self.p.transpose else ""
        return f"gathered({self.post.size}, {x}, {rows}{units})"

    def nengo_transform(self, source: Source) -> str | None:
        order = "[::-1]" if self.p.transpose else ""
        gain = "" if self.p.gain == 1 else f", weights={self.p.gain!r}"
        return f"sparse(({self.post.size}, {self.pre.size}), *pairs({source(self.p.index)}){order}{gain})"


class Route(Table):
    """post_i = pre[index_i w], w the winning slot of unit elements_i, or i, of the select population `by`."""

    name: ClassVar[Operator] = "route"
    needs, may = ("index", "by"), ("elements",)
    unsaid: ClassVar = {"nir": "a choice of synapses"}

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        winners, targets = self.populations[str(self.p.by)].size, size(self.ends[0])
        units = np.arange(winners) if self.elements is None else self.elements
        if units.shape != (targets,):
            yield f"{size(units.shape)} winners of {self.p.by} for {targets} units"
        yield from out_of_range("elements", units, 0, winners)

    def message(self) -> Message:
        slots = wide(self.index)
        units = None if self.elements is None else wide(self.elements)

        def routed(x: Tensor, winners: Tensor | None) -> Tensor:
            assert winners is not None
            x, won = flat(x), flat(winners)
            won = won if units is None else won[:, units]
            chosen = slots.expand(x.shape[0], -1, -1).gather(2, won[:, :, None])[:, :, 0]
            if not self.p.transpose:
                return self.shaped(torch.where(chosen >= 0, x.gather(1, chosen.clamp(min=0)), 0))
            sent = torch.where(chosen >= 0, x, 0)
            return self.shaped(x.new_zeros(x.shape[0], self.post.size).scatter_add_(1, chosen.clamp(min=0), sent))

        return routed

    def listed(self) -> Synapses:
        rows, slots = np.nonzero(self.index >= 0)
        found = super().listed()
        return Synapses(found.post, found.pre, None, rows if self.elements is None else self.elements[rows], slots)

    def most_terms(self) -> int:
        return super().most_terms() if self.p.transpose else 1

    def chosen_by(self, inside: np.ndarray) -> np.ndarray:
        units = np.arange(len(self.index)) if self.elements is None else self.elements.reshape(-1)
        winners = self.populations[str(self.p.by)].size
        return np.bincount(units[self._reached(inside.reshape(-1)) > 0], minlength=winners)

    def is_single_synapses(self) -> bool:
        return True

    def divided(self, parts: np.ndarray, owners: np.ndarray) -> dict[str, np.ndarray] | None:
        places = np.nonzero(self.index >= 0)
        if self.p.transpose:
            table = np.full(self.index.shape, -1, np.int64)
            table[places] = parts
            return {"index": table}
        table = np.full((owners.size, self.index.shape[1]), -1, np.int64)
        table[parts, places[1]] = self.index[places]
        return {"index": table, "elements": owners if self.elements is None else self.elements[owners]}

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        won = operand if self.p.elements is None else f"({operand})[{source(self.p.elements)}]"
        if self.p.transpose:
            return f"route_adjoint({x}, {won}, {source(self.p.index)}, {self.post.size})"
        return f"route({x}, {won}, {source(self.p.index)})"
