"""The scalar view of projections and rules: which unit reads which, through which entry of a parameter."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors


@dataclass(frozen=True)
class Synapses:
    """Synapses in columns, sorted by the unit that they reach; `None` for a column that they do not have.

    post: the unit, or the entry of a parameter, that is reached. pre: the unit that is read. other: what it is
    multiplied with, an entry of the parameter of a projection, a unit of the second population of a rule.
    winner, slot: the synapse carries nothing unless this unit of a select population chose this slot.
    """

    post: np.ndarray
    pre: np.ndarray
    other: np.ndarray | None = None
    winner: np.ndarray | None = None
    slot: np.ndarray | None = None

    def sorted(self) -> Synapses:
        """The same synapses in the order of `post`, otherwise as they were."""
        order = np.argsort(self.post, kind="stable")
        columns = (None if c is None else c[order] for c in (self.other, self.winner, self.slot))
        return Synapses(self.post[order], self.pre[order], *columns)

    def rows(self, size: int) -> list[range]:
        """For each of `size` units, the numbers of the synapses that reach it."""
        ends = np.searchsorted(self.post, np.arange(size + 1)).tolist()
        return [range(a, b) for a, b in itertools.pairwise(ends)]


def synapses(p: Projection, spec: Spec, tensors: Tensors) -> Synapses:
    """The synapses of a projection."""
    pre, post = spec.populations[p.pre], spec.populations[p.target]
    match p.op:
        case "one_to_one":
            units = np.arange(post.size)
            return Synapses(units, units)
        case "gather":
            index = tensors[str(p.index)]
            rows, slots = np.nonzero(index >= 0)
            found = Synapses(rows, index[rows, slots])
        case "sparse":
            index = tensors[str(p.index)]
            elements = np.arange(index.shape[1]) if p.elements is None else tensors[p.elements]
            found = Synapses(index[0], index[1], elements)
        case "dense":
            outputs, inputs = tensors[str(p.param)].shape
            size = post.size if p.transpose else pre.size
            row, o, i = (a.reshape(-1) for a in np.indices((size // inputs, outputs, inputs)))
            found = Synapses(row * outputs + o, row * inputs + i, o * inputs + i)
        case "conv":
            near, far = (post.shape, pre.shape) if p.transpose else (pre.shape, post.shape)
            output, source, element = convolved(p, near, far, tensors[str(p.param)].shape)
            found = Synapses(output, source, element)
        case "route":
            index = tensors[str(p.index)]
            rows, slots = np.nonzero(index >= 0)
            units = rows if p.elements is None else tensors[p.elements][rows]
            found = Synapses(rows, index[rows, slots], None, units, slots)
    if p.transpose:
        found = Synapses(found.pre, found.post, found.other, found.winner, found.slot)
    return found.sorted()


def convolved(
    p: Projection, near: Sequence[int], far: Sequence[int], kernel: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, inputs and kernel entries that a convolution joins; near and far are the shapes of its two sides."""
    rank = len(p.stride)
    channels = [int(np.prod(s[:-rank][-1:])) for s in (near, far)]
    batch = int(np.prod(far)) // (channels[1] * int(np.prod(far[-rank:])))
    grid = np.indices((batch, kernel[0], *far[-rank:], *kernel[1:])).reshape(2 + 2 * rank + 1, -1)
    sample, output, into, place, offset = (
        grid[0], grid[1], grid[2 + rank], grid[2 : 2 + rank], grid[3 + rank :],
    )  # fmt: skip
    inside = np.ones(grid.shape[1], dtype=bool)
    position = []
    for d in range(rank):
        at = place[d] * p.stride[d] - p.padding[d] + offset[d] * p.dilation[d]
        inside &= (at >= 0) & (at < near[d - rank])
        position.append(at)
    source = output // (kernel[0] // p.groups) * kernel[1] + into

    def flat(shape: Sequence[int], indices: Sequence[np.ndarray]) -> np.ndarray:
        return np.ravel_multi_index([i[inside] for i in indices], tuple(shape))

    return (
        flat((batch, channels[1], *far[-rank:]), (sample, output, *place)),
        flat((batch, channels[0], *near[-rank:]), (sample, source, *position)),
        flat(kernel, (output, into, *offset)),
    )


def changes(rule: Plasticity, spec: Spec, tensors: Tensors) -> Synapses:
    """What a rule adds up for each entry of its parameter: units of `post` times units of `pre`."""
    post, shape = spec.populations[rule.post], tensors[rule.param].shape
    if rule.rule == "copy":
        units = np.arange(post.size)
        if rule.axis is None:
            return Synapses(units, units)
        return Synapses(np.indices(post.shape)[rule.axis].reshape(-1), units).sorted()
    if rule.rule == "outer":
        rows, o, i = (a.reshape(-1) for a in np.indices((post.size // shape[0], *shape)))
        return Synapses(o * shape[1] + i, rows * shape[0] + o, rows * shape[1] + i).sorted()
    via = spec.named()[str(rule.via)]
    if rule.rule == "correlate":
        pre = spec.populations[str(rule.pre)]
        output, source, element = convolved(via, pre.shape, post.shape, shape)
        return Synapses(element, output, source).sorted()
    index = tensors[str(via.index)]
    elements = np.arange(index.shape[1]) if via.elements is None else tensors[via.elements]
    return Synapses(elements, index[0], index[1]).sorted()


def bias_entries(shape: Sequence[int], axis: int | None) -> np.ndarray:
    """The entry of its bias that each unit of a population adds."""
    return np.arange(int(np.prod(shape))) if axis is None else np.indices(tuple(shape))[axis].reshape(-1)
