"""The synapses of a projection one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from pccompile.backends.netlist.format import Projection, Spec, Tensors
from pccompile.diagnostics import CompileError

MOST = 10**8
"""The most synapses that are listed."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Synapses:
    """Synapse s leads from unit pre[s] to unit post[s] with entry elements[s] of the parameter, flat numbers all.

    post and pre are those of the map itself, also where a projection is its adjoint. elements is None where each has
    the weight 1.
    """

    post: np.ndarray
    pre: np.ndarray
    elements: np.ndarray | None

    @property
    def index(self) -> np.ndarray:
        """What a `sparse` projection calls its index."""
        return np.stack([self.post, self.pre])


def ends(p: Projection, spec: Spec) -> tuple[Shape, Shape]:
    """The shapes of post and pre of the map of which `p` is the adjoint, if it is one, and else itself."""
    post, pre = spec.populations[p.target].shape, spec.populations[p.pre].shape
    return (pre, post) if p.transpose else (post, pre)


def synapses(p: Projection, spec: Spec, tensors: Tensors) -> Synapses:
    """The synapses of any projection but a route. Raises CompileError where they are too many to be listed."""
    post, pre = ends(p, spec)
    _limited(p, post, tensors)
    match p.op:
        case "one_to_one":
            return Synapses(np.arange(math.prod(post)), np.arange(math.prod(pre)), None)
        case "gather":
            index = tensors[str(p.index)]
            rows, slots = np.nonzero(index >= 0)
            return Synapses(rows, index[rows, slots].astype(np.int64), None)
        case "sparse":
            index = tensors[str(p.index)].astype(np.int64)
            elements = np.arange(index.shape[1]) if p.elements is None else tensors[p.elements].astype(np.int64)
            return Synapses(index[0], index[1], elements)
        case "dense":
            return _dense(math.prod(post[:-1]), tensors[str(p.param)].shape)
        case "conv":
            return _convolution(p, tensors[str(p.param)].shape, post, pre)
    raise CompileError(f"projection {p.name} is routed by {p.by} and has no synapses of its own")


def _limited(p: Projection, post: Shape, tensors: Tensors) -> None:
    count = math.prod(post)
    if p.op in ("dense", "conv"):
        count *= math.prod(tensors[str(p.param)].shape[1:])
    if count > MOST:
        raise CompileError(f"projection {p.name} has {count} synapses; at most {MOST} are listed one by one")


def _dense(rows: int, shape: Shape) -> Synapses:
    row, out, into = (a.reshape(-1) for a in np.indices((rows, *shape)))
    return Synapses(row * shape[0] + out, row * shape[1] + into, out * shape[1] + into)


def _convolution(p: Projection, kernel: Shape, post: Shape, pre: Shape) -> Synapses:
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
        return Synapses(*(np.zeros(0, np.int64) for _ in range(3)))
    to, of, tap = flat(0, post[2:]), flat(1, pre[2:]), flat(2, kernel[2:])
    sample, out, into = (a.reshape(-1, 1) for a in np.indices((post[0], kernel[0], kernel[1])))
    source = out // (kernel[0] // p.groups) * kernel[1] + into
    sizes = [math.prod(shape[2:]) for shape in (post, pre, kernel)]
    return Synapses(
        ((sample * post[1] + out) * sizes[0] + to).reshape(-1),
        ((sample * pre[1] + source) * sizes[1] + of).reshape(-1),
        ((out * kernel[1] + into) * sizes[2] + tap + 0 * sample).reshape(-1),
    )


def fan_in(p: Projection, spec: Spec, tensors: Tensors) -> np.ndarray:
    """The number of synapses of `p` on each unit of the population that it reaches; a route has one for each slot."""
    size = spec.populations[p.target].size
    if p.op == "one_to_one":
        return np.ones(size, np.int64)
    if p.op == "dense":
        return np.full(size, tensors[str(p.param)].shape[0 if p.transpose else 1])
    if p.op == "route":
        index = tensors[str(p.index)]
        return np.bincount(index[index >= 0], minlength=size) if p.transpose else (index >= 0).sum(1)
    found = synapses(p, spec, tensors)
    return np.bincount(found.pre if p.transpose else found.post, minlength=size)


def fresh(name: str, used: Container[str]) -> str:
    """`name`, with a number where it is used."""
    numbered = (f"{name}_{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain((name,), numbered) if n not in used)


__all__ = ["MOST", "Synapses", "ends", "fan_in", "fresh", "synapses"]
