"""The synapses of projections and rules one by one: which unit reads which, through which entry of a parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors
from pccompile.limits import exceeded, limit

Shape = tuple[int, ...]

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Units of post, units of pre, entries of the parameter, flat numbers all."""


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

    def sorted(self) -> Synapses:
        """The same synapses in the order of `post`, otherwise as they were."""
        order = np.argsort(self.post, kind="stable")
        columns = (None if c is None else c[order] for c in (self.other, self.winner, self.slot))
        return Synapses(self.post[order], self.pre[order], *columns)

    def rows(self, size: int) -> list[range]:
        """For each of `size` units, the numbers of the synapses that reach it; they are sorted."""
        ends = np.searchsorted(self.post, np.arange(size + 1)).tolist()
        return [range(a, b) for a, b in itertools.pairwise(ends)]


def ends(p: Projection, spec: Spec) -> tuple[Shape, Shape]:
    """The shapes of post and pre of the map of which `p` is the adjoint, if it is one, and else itself."""
    post, pre = spec.populations[p.target].shape, spec.populations[p.pre].shape
    return (pre, post) if p.transpose else (post, pre)


def count(p: Projection, spec: Spec, tensors: Tensors) -> int:
    """How many synapses a projection has, at most: those beyond the edge of a convolution are counted too."""
    if p.op in ("dense", "conv"):
        return math.prod(ends(p, spec)[0]) * math.prod(tensors[str(p.param)].shape[1:])
    if p.op == "sparse":
        return int(tensors[str(p.index)].shape[1])
    return spec.populations[p.pre].size if p.index is None else int((tensors[p.index] >= 0).sum())


def work(spec: Spec, tensors: Tensors) -> int:
    """What a tick costs: an operation for each synapse, 50 for each unit."""
    return sum(count(p, spec, tensors) for p in spec.projections) + 50 * sum(p.size for p in spec.populations.values())


def synapses(p: Projection, spec: Spec, tensors: Tensors) -> Synapses:
    """The synapses of a projection, of a choice all those that it chooses from, in the order of the map's own tensors.

    Raises CompileError where they are too many to be listed.
    """
    if (number := count(p, spec, tensors)) > limit("synapses"):
        raise exceeded("synapses", number, limit("synapses"), f"listing projection {p.name} one by one")
    found = _listed(p, *ends(p, spec), tensors)
    return replace(found, post=found.pre, pre=found.post) if p.transpose else found


def weights(p: Projection, found: Synapses, tensors: Tensors) -> np.ndarray:
    """The weights of the synapses that were found of a projection, gain included."""
    return p.gain * (np.ones(len(found.post)) if found.other is None else tensors[str(p.param)].ravel()[found.other])


def matrix(p: Projection, spec: Spec, tensors: Tensors) -> np.ndarray:
    """The synapses of a projection as a matrix of weights, [post, pre]; those of a pair of units are added up."""
    found = synapses(p, spec, tensors)
    entries = np.zeros((spec.populations[p.target].size, spec.populations[p.pre].size))
    np.add.at(entries, (found.post, found.pre), weights(p, found, tensors))
    return entries


def fan_in(p: Projection, spec: Spec, tensors: Tensors) -> np.ndarray:
    """The number of synapses of `p` on each unit of the population that it reaches; a route has one for each slot."""
    size = spec.populations[p.target].size
    if p.op == "dense":
        return np.full(size, tensors[str(p.param)].shape[0 if p.transpose else 1])
    return np.bincount(synapses(p, spec, tensors).post, minlength=size)


def changes(rule: Plasticity, spec: Spec, tensors: Tensors) -> Synapses:
    """What a rule adds up for each entry of its parameter, sorted: units of its post times units of its pre."""
    post, kernel = spec.populations[rule.post], tensors[rule.param].shape
    if rule.rule == "copy":
        return Synapses(bias_entries(post.shape, rule.axis), np.arange(post.size)).sorted()
    if rule.rule == "outer":
        units, read, entries = _dense(post.size // kernel[0], kernel)
    elif rule.rule == "correlate":
        pre = spec.populations[str(rule.pre)].shape
        units, read, entries = _convolution(spec.named()[str(rule.via)], kernel, post.shape, pre)
    else:
        units, read, entries = _sparse(spec.named()[str(rule.via)], tensors)
    return Synapses(entries, units, read).sorted()


def bias_entries(shape: Sequence[int], axis: int | None) -> np.ndarray:
    """The entry of its bias that each unit of a population adds."""
    return np.arange(math.prod(shape)) if axis is None else np.indices(tuple(shape))[axis].reshape(-1)


def _listed(p: Projection, post: Shape, pre: Shape, tensors: Tensors) -> Synapses:
    """The synapses of the map itself, also where a projection is its adjoint."""
    match p.op:
        case "one_to_one":
            return Synapses(np.arange(math.prod(post)), np.arange(math.prod(pre)))
        case "gather" | "route":
            index = tensors[str(p.index)]
            rows, slots = np.nonzero(index >= 0)
            read = index[rows, slots].astype(np.int64)
            if p.op == "gather":
                return Synapses(rows, read)
            return Synapses(rows, read, None, rows if p.elements is None else tensors[p.elements][rows], slots)
        case "sparse":
            return Synapses(*_sparse(p, tensors))
        case "dense":
            return Synapses(*_dense(math.prod(post[:-1]), tensors[str(p.param)].shape))
        case "conv":
            return Synapses(*_convolution(p, tensors[str(p.param)].shape, post, pre))


def _sparse(p: Projection, tensors: Tensors) -> Columns:
    post, pre = tensors[str(p.index)].astype(np.int64)
    return post, pre, np.arange(len(post)) if p.elements is None else tensors[p.elements].astype(np.int64)


def _dense(rows: int, shape: Shape) -> Columns:
    row, out, into = (a.reshape(-1) for a in np.indices((rows, *shape)))
    return row * shape[0] + out, row * shape[1] + into, out * shape[1] + into


def _convolution(p: Projection, kernel: Shape, post: Shape, pre: Shape) -> Columns:
    """Synapses of a convolution from `pre` to `post`, [samples, channels, …], with a kernel [post, pre / groups, …]."""
    reads = []
    for axis, (stride, padding, dilation) in enumerate(zip(p.stride, p.padding, p.dilation, strict=True), 2):
        at, tap = np.indices((post[axis], kernel[axis]))
        place = at * stride - padding + tap * dilation
        inside = (place >= 0) & (place < pre[axis])
        reads.append((at[inside], place[inside], tap[inside]))
    pairs = [a.reshape(-1) for a in np.meshgrid(*(np.arange(len(r[0])) for r in reads), indexing="ij")]

    def flat(part: int, lengths: Shape) -> np.ndarray:
        return np.ravel_multi_index([r[part][i] for r, i in zip(reads, pairs, strict=True)], lengths)

    if not pairs[0].size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    to, of, tap = flat(0, post[2:]), flat(1, pre[2:]), flat(2, kernel[2:])
    sample, out, into = (a.reshape(-1, 1) for a in np.indices((post[0], kernel[0], kernel[1])))
    source = out // (kernel[0] // p.groups) * kernel[1] + into
    sizes = [math.prod(shape[2:]) for shape in (post, pre, kernel)]
    return (
        ((sample * post[1] + out) * sizes[0] + to).reshape(-1),
        ((sample * pre[1] + source) * sizes[1] + of).reshape(-1),
        ((out * kernel[1] + into) * sizes[2] + tap + 0 * sample).reshape(-1),
    )


__all__ = ["Synapses", "bias_entries", "changes", "count", "ends", "fan_in", "matrix", "synapses", "weights"]
