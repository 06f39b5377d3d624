"""Projections unrolled: which unit reaches which, with what weight."""

from __future__ import annotations

import math

import numpy as np

from pccompile.backends.netlist.format import Projection
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.transforms import synapses as listed

Weighted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Units of post, units of pre and weights, gain included; a pair of units may come more than once."""


def count(net: Netlist, p: Projection) -> int:
    """How many synapses a projection has, at most: those beyond the edge of a convolution are counted too."""
    if p.op in ("dense", "conv"):
        post, _ = listed.ends(p, net.spec)
        return math.prod(post) * math.prod(net.tensors[str(p.param)].shape[1:])
    if p.op == "sparse":
        return int(net.tensors[str(p.index)].shape[1])
    return net.spec.populations[p.pre].size if p.index is None else int((net.tensors[p.index] >= 0).sum())


def synapses(net: Netlist, p: Projection) -> Weighted:
    """The synapses of a projection, of a choice all those that it chooses from."""
    if p.op == "route":
        index = net.tensors[str(p.index)]
        post, slots = np.nonzero(index >= 0)
        pre, weights = index[post, slots], np.ones(len(post))
    else:
        found = listed.synapses(p, net.spec, net.tensors)
        post, pre = found.post, found.pre
        weights = np.ones(len(post)) if found.elements is None else net.tensors[str(p.param)].ravel()[found.elements]
    return (pre, post, weights * p.gain) if p.transpose else (post, pre, weights * p.gain)


def matrix(net: Netlist, p: Projection) -> np.ndarray:
    """The synapses of a projection as a matrix, [post, pre]."""
    post, pre, weights = synapses(net, p)
    found = np.zeros((net.spec.populations[p.target].size, net.spec.populations[p.pre].size))
    np.add.at(found, (post, pre), weights)
    return found
