"""Whether tensors fit what projections and plasticity do with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from pccompile.backends.netlist.format import Operator, Plasticity, Population, Projection, Tensors

Populations = Mapping[str, Population]
Shape = tuple[int, ...]

_NEEDS: dict[Operator, tuple[str, ...]] = {
    "one_to_one": (), "gather": ("index",), "sparse": ("index", "param"), "dense": ("param",),
    "conv": ("param", "stride", "padding", "dilation"), "route": ("index", "by"),
}  # fmt: skip
_MAY: dict[Operator, tuple[str, ...]] = {"sparse": ("elements",), "route": ("elements",), "conv": ("groups",)}
_UNSET = {"param": None, "index": None, "elements": None, "by": None, "stride": (), "padding": (), "dilation": (),
          "groups": 1}  # fmt: skip


def projection_problems(p: Projection, populations: Populations, tensors: Tensors) -> Iterator[str]:
    """What is wrong with a projection between two populations that are there."""
    needs, may = _NEEDS[p.op], _MAY.get(p.op, ())
    missing = [f for f in needs if getattr(p, f) == _UNSET[f]]
    yield from (f"{p.op} needs {f}" for f in missing)
    yield from (
        f"{f} means nothing for {p.op}" for f in _UNSET if f not in (*needs, *may) and getattr(p, f) != _UNSET[f]
    )
    kinds = {"param": ("f", "numbers"), "index": ("i", "whole numbers"), "elements": ("i", "whole numbers")}
    wrong = [
        f"{field} {name} is not a tensor of {word}"
        for field, (kind, word) in kinds.items()
        if (name := getattr(p, field)) is not None and (name not in tensors or tensors[name].dtype.kind != kind)
    ]
    yield from wrong
    if missing or wrong:
        return
    pre, post = populations[p.pre], populations[p.target]
    source, target = (post, pre) if p.transpose else (pre, post)  # of the map whose adjoint it may be
    match p.op:
        case "one_to_one":
            if pre.size != post.size:
                yield f"one_to_one from {pre.size} units to {post.size}"
        case "gather":
            yield from _index(tensors[str(p.index)], target.size, source.size)
        case "sparse":
            yield from sparse(p, target.size, source.size, tensors[str(p.param)].size, tensors)
        case "dense":
            yield from dense(tensors[str(p.param)].shape, target.shape, source.shape)
        case "conv":
            yield from conv(p, tensors[str(p.param)].shape, target.shape, source.shape)
        case "route":
            yield from _route(p, target.size, source.size, populations[str(p.by)].size, tensors)


def _range(what: str, index: np.ndarray, low: int, size: int) -> Iterator[str]:
    if index.size and (index.min() < low or index.max() >= size):
        yield f"{what} goes from {index.min()} to {index.max()}, units and entries from 0 to {size - 1}"


def _index(index: np.ndarray, rows: int, size: int) -> Iterator[str]:
    if index.ndim != 2 or index.shape[0] != rows:
        yield f"index of shape {list(index.shape)} has not a row for each of {rows} units"
    yield from _range("index", index, -1, size)


def sparse(p: Projection, targets: int, sources: int, entries: int, tensors: Tensors) -> Iterator[str]:
    """What is wrong with synapses one by one: of units that are not there, or entries of the parameter."""
    index = tensors.get(str(p.index))
    if index is None or index.ndim != 2 or index.shape[0] != 2 or index.dtype.kind != "i":
        yield f"index {p.index} is not two rows of whole numbers"
        return
    yield from _range("index of post", index[0], 0, targets)
    yield from _range("index of pre", index[1], 0, sources)
    if p.elements is None:
        if entries != index.shape[1]:
            yield f"{index.shape[1]} synapses, and {entries} entries of the parameter"
        return
    elements = tensors.get(p.elements)
    if elements is None or elements.shape != (index.shape[1],) or elements.dtype.kind != "i":
        yield f"elements {p.elements} are not {index.shape[1]} whole numbers"
        return
    yield from _range("elements", elements, 0, entries)


def dense(param: Shape, post: Shape, pre: Shape) -> Iterator[str]:
    """What is wrong with a matrix between the last axes of two shapes."""
    if len(param) != 2 or not (post and pre) or (post[-1], pre[-1]) != param or post[:-1] != pre[:-1]:
        yield f"a matrix {list(param)} does not lead from {list(pre)} to {list(post)}"


def conv(p: Projection, param: Shape, post: Shape, pre: Shape) -> Iterator[str]:
    """What is wrong with a convolution of `pre`, [batch, channels, …], that yields `post`."""
    rank = len(p.stride)
    if not 1 <= rank <= 3 or len(p.padding) != rank or len(p.dilation) != rank:
        yield "stride, padding and dilation are not of the same 1 to 3 axes"
        return
    if min(p.stride) < 1 or min(p.dilation) < 1 or min(p.padding) < 0 or p.groups < 1:
        yield "stride, dilation and groups are at least 1, and padding at least 0"
        return
    if not len(pre) == len(post) == len(param) == rank + 2:
        yield f"a kernel {list(param)} does not lead from {list(pre)} to {list(post)} over {rank} axes"
        return
    fits = param[0] % p.groups == 0 and pre[1] == param[1] * p.groups and post[:2] == (pre[0], param[0])
    lengths = tuple((n + 2 * pad - d * (k - 1) - 1) // s + 1 for n, pad, d, k, s in
                    zip(pre[2:], p.padding, p.dilation, param[2:], p.stride, strict=True))  # fmt: skip
    if not fits or lengths != post[2:]:
        reached = [pre[0], param[0], *lengths]
        yield f"a kernel {list(param)} in {p.groups} groups leads from {list(pre)} to {reached}, not to {list(post)}"


def _route(p: Projection, targets: int, sources: int, winners: int, tensors: Tensors) -> Iterator[str]:
    yield from _index(tensors[str(p.index)], targets, sources)
    units = np.arange(winners) if p.elements is None else tensors[p.elements]
    if units.shape != (targets,):
        yield f"{math.prod(units.shape)} winners of {p.by} for {targets} units"
    yield from _range("elements", units, 0, winners)


def plasticity_problems(
    rule: Plasticity, named: Mapping[str, Projection], populations: Populations, tensors: Tensors
) -> Iterator[str]:
    """What is wrong with a rule whose populations are there."""
    array = tensors.get(rule.param)
    if array is None or array.dtype.kind != "f":
        yield f"{rule.param} is not a tensor of numbers"
        return
    if (rule.pre is None) != (rule.rule == "copy"):
        yield f"{rule.rule} {'needs' if rule.pre is None else 'has no'} pre"
        return
    if rule.axis is not None and rule.rule != "copy":
        yield f"axis means nothing for {rule.rule}"
    param, post = array.shape, populations[rule.post]
    if rule.rule == "copy":
        yield from _copy(rule, param, post)
        return
    pre = populations[str(rule.pre)]
    if rule.rule == "outer":
        yield from dense(param, post.shape, pre.shape)
        return
    via, op = named.get(str(rule.via)), "conv" if rule.rule == "correlate" else "sparse"
    if via is None or via.op != op:
        yield f"{rule.rule} needs a {op} projection, and {rule.via} is none"
    elif op == "conv":
        yield from conv(via, param, post.shape, pre.shape)
    else:
        yield from sparse(via, post.size, pre.size, array.size, tensors)


def _copy(rule: Plasticity, param: Shape, post: Population) -> Iterator[str]:
    if rule.axis is None:
        if math.prod(param) != post.size:
            yield f"{post.size} units are copied to {math.prod(param)} entries"
    elif not 0 <= rule.axis < len(post.shape) or param != (post.shape[rule.axis],):
        yield f"axis {rule.axis} of {list(post.shape)} is not copied to {list(param)}"


__all__ = ["conv", "dense", "plasticity_problems", "projection_problems", "sparse"]
