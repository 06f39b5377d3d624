"""Projections unrolled: which unit reaches which, with what weight."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from pccompile.backends.netlist.format import Projection
from pccompile.backends.netlist.netlist import Netlist

Synapses = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Units of post, units of pre and weights, gain included; a pair of units may come more than once."""


def count(net: Netlist, p: Projection) -> int:
    """How many synapses a projection has, at most: those beyond the edge of a convolution are counted too."""
    match p.op:
        case "one_to_one":
            return net.spec.populations[p.pre].size
        case "gather":
            return int((net.tensors[str(p.index)] >= 0).sum())
        case "sparse":
            return int(net.tensors[str(p.index)].shape[1])
        case "route":
            return int(net.tensors[str(p.index)].size)
    kernel = net.tensors[str(p.param)]
    if p.op == "dense":
        return int(net.spec.populations[p.pre].size // kernel.shape[not p.transpose] * kernel.size)
    outputs = net.spec.populations[p.pre if p.transpose else p.target]
    return outputs.size * int(math.prod(kernel.shape[1:]))


def synapses(net: Netlist, p: Projection) -> Synapses:
    """The synapses of a projection other than `route`, whose synapses change."""
    if p.op == "one_to_one":
        units = np.arange(net.spec.populations[p.pre].size)
        return units, units, np.full(len(units), p.gain)
    if p.op == "gather":
        index = net.tensors[str(p.index)]
        post, slots = np.nonzero(index >= 0)
        found: Synapses = post, index[post, slots], np.ones(len(post))
    else:
        weights = net.tensors[str(p.param)]
        if p.op == "sparse":
            elements = slice(None) if p.elements is None else net.tensors[p.elements]
            found = (*net.tensors[str(p.index)], weights.ravel()[elements])
        elif p.op == "dense":
            rows = net.spec.populations[p.pre].size // weights.shape[0 if p.transpose else 1]
            row, o, i = np.indices((rows, *weights.shape)).reshape(3, -1)
            found = row * weights.shape[0] + o, row * weights.shape[1] + i, np.tile(weights.ravel(), rows)
        else:
            found = _convolution(net, p, weights)
    post, pre, w = found
    return (pre, post, w * p.gain) if p.transpose else (post, pre, w * p.gain)


def _convolution(net: Netlist, p: Projection, w: np.ndarray) -> Synapses:
    """The synapses of a convolution from its input to its output, whichever of them is `pre`."""
    rank, ends = len(p.stride), (p.target, p.pre) if p.transpose else (p.pre, p.target)
    into, out = (net.spec.populations[n].shape for n in ends)
    units = np.arange(math.prod(into)).reshape(-1, p.groups, w.shape[1], *into[-rank:])
    units = np.pad(units, [(0, 0)] * 3 + [(n, n) for n in p.padding], constant_values=-1)
    post = np.arange(math.prod(out)).reshape(len(units), p.groups, -1, 1, *out[-rank:])
    kernel = w.reshape(1, p.groups, -1, *w.shape[1:])
    parts: list[Synapses] = []
    for place in itertools.product(*map(range, w.shape[2:])):
        cuts = [slice(k * d, k * d + s * (n - 1) + 1, s)
                for k, d, s, n in zip(place, p.dilation, p.stride, out[-rank:], strict=True)]  # fmt: skip
        seen = units[(slice(None), slice(None), None, slice(None), *cuts)]
        at: list[Any] = [slice(None), slice(None), slice(None), slice(None), *place]
        weights = kernel[tuple(at)].reshape(1, p.groups, -1, w.shape[1], *(1,) * rank)
        to, source, weight = np.broadcast_arrays(post, seen, weights)
        parts.append((to[source >= 0], source[source >= 0], weight[source >= 0]))
    post, pre, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return post, pre, weights


def matrix(net: Netlist, p: Projection) -> np.ndarray:
    """The synapses of a projection as a matrix, [post, pre]."""
    post, pre, weights = synapses(net, p)
    found = np.zeros((net.spec.populations[p.target].size, net.spec.populations[p.pre].size))
    np.add.at(found, (post, pre), weights)
    return found
