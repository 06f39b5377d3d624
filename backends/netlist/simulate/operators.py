"""What each projection does to the states of its source, and what each plasticity rule adds to its parameter.

States have a leading axis of replicas: independent presentations that share parameters. All is linear, so the
fixed-point simulator calls the same functions on whole numbers held in float64, where they are exact below 2⁵³.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors

Message = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""From states of `pre`, the parameter and the winners of `by` to what arrives; states are [replicas, *shape]."""

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def message(p: Projection, spec: Spec, tensors: Tensors) -> Message:
    """The function of projection `p`, its gain left out."""
    shape, size = spec.populations[p.target].shape, spec.populations[p.target].size

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *shape)

    match p.op:
        case "one_to_one":
            return lambda x, w, by: shaped(x)
        case "gather":
            gather = _gather(torch.from_numpy(tensors[str(p.index)].astype("int64")), p.transpose, size)
            return lambda x, w, by: shaped(gather(x.flatten(1)))
        case "sparse":
            sparse = _sparse(p, tensors, size)
            return lambda x, w, by: shaped(sparse(x.flatten(1), w))
        case "dense":
            return lambda x, w, by: shaped(_dense(x, w, p.transpose))
        case "conv":
            return lambda x, w, by: _convolution(p, shape, x, w).reshape(x.shape[0], *shape)
        case "route":
            slots = torch.from_numpy(tensors[str(p.index)].astype("int64"))
            units = None if p.elements is None else torch.from_numpy(tensors[p.elements].astype("int64"))
            return lambda x, w, by: shaped(_route(slots, units, p.transpose, size, x.flatten(1), by))


def _gather(index: Tensor, transpose: bool, size: int) -> Callable[[Tensor], Tensor]:
    rows, slots = torch.nonzero(index >= 0, as_tuple=True)
    columns = index[rows, slots]
    full = rows.numel() == index.numel()
    if not transpose and full and index.shape[1] == 1:
        return lambda x: x[:, columns]
    if not transpose and full:
        return lambda x: x[:, index].sum(-1)
    source, target = (rows, columns) if transpose else (columns, rows)
    return lambda x: x.new_zeros(x.shape[0], size).index_add_(1, target, x[:, source])


def _sparse(p: Projection, tensors: Tensors, size: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    index = torch.from_numpy(tensors[str(p.index)].astype("int64"))
    target, source = (index[1], index[0]) if p.transpose else (index[0], index[1])
    elements = None if p.elements is None else torch.from_numpy(tensors[p.elements].astype("int64"))

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        weights = w.reshape(-1) if elements is None else w.reshape(-1)[elements]
        return x.new_zeros(x.shape[0], size).index_add_(1, target, x[:, source] * weights)

    return apply


def _dense(x: Tensor, w: Tensor | None, transpose: bool) -> Tensor:
    assert w is not None
    w = w if transpose else w.t()
    return x.reshape(x.shape[0], -1, w.shape[0]) @ w


def _folded(x: Tensor) -> Tensor:
    """Replicas and samples in one axis."""
    return x.reshape(-1, *x.shape[2:])


def _convolution(p: Projection, shape: tuple[int, ...], x: Tensor, w: Tensor | None) -> Tensor:
    assert w is not None
    rank = len(p.stride)
    if not p.transpose:
        return _CONV[rank](_folded(x), w, None, p.stride, p.padding, p.dilation, p.groups)
    least = [(x.shape[i - rank] - 1) * p.stride[i] - 2 * p.padding[i] + p.dilation[i] * (w.shape[i - rank] - 1) + 1
             for i in range(rank)]  # fmt: skip
    extra = [shape[i - rank] - least[i] for i in range(rank)]
    return _ADJOINT[rank](_folded(x), w, None, p.stride, p.padding, extra, p.groups, p.dilation)


def _route(
    slots: Tensor, units: Tensor | None, transpose: bool, size: int, x: Tensor, winners: Tensor | None
) -> Tensor:
    assert winners is not None
    won = winners.flatten(1) if units is None else winners.flatten(1)[:, units]
    chosen = slots.expand(x.shape[0], -1, -1).gather(2, won[:, :, None])[:, :, 0]
    if not transpose:
        return torch.where(chosen >= 0, x.gather(1, chosen.clamp(min=0)), 0)
    return x.new_zeros(x.shape[0], size).scatter_add_(1, chosen.clamp(min=0), torch.where(chosen >= 0, x, 0))


Change = Callable[[Tensor | None, Tensor, tuple[int, ...]], Tensor]
"""From the states of pre and post and the parameter's shape to its change, rate and gain left out."""


def change(rule: Plasticity, spec: Spec, tensors: Tensors) -> Change:
    """The function of one plasticity rule, summed over replicas."""
    via = spec.named().get(rule.via or "")
    match rule.rule:
        case "outer":
            return _outer
        case "copy":
            return lambda pre, post, shape: _copied(post, shape, rule.axis)
        case "correlate":
            assert via is not None
            return lambda pre, post, shape: _correlated(via, pre, post, shape)
        case "sparse":
            assert via is not None
            index = torch.from_numpy(tensors[str(via.index)].astype("int64"))
            elements = None if via.elements is None else torch.from_numpy(tensors[via.elements].astype("int64"))
            return lambda pre, post, shape: _paired(index, elements, pre, post, shape)


def _outer(pre: Tensor | None, post: Tensor, shape: tuple[int, ...]) -> Tensor:
    assert pre is not None
    return post.reshape(-1, shape[0]).t() @ pre.reshape(-1, shape[1])


def _copied(post: Tensor, shape: tuple[int, ...], axis: int | None) -> Tensor:
    if axis is None:
        return post.sum(0).reshape(shape)
    return post.movedim(axis + 1, -1).reshape(-1, shape[0]).sum(0)


def _correlated(via: Projection, pre: Tensor | None, post: Tensor, shape: tuple[int, ...]) -> Tensor:
    assert pre is not None
    _, found, _ = torch.ops.aten.convolution_backward(
        _folded(post), _folded(pre), pre.new_empty(shape), None, via.stride, via.padding, via.dilation, False,
        [0] * len(via.stride), via.groups, [False, True, False])  # fmt: skip
    return found  # type: ignore[no-any-return]


def _paired(index: Tensor, elements: Tensor | None, pre: Tensor | None, post: Tensor, shape: tuple[int, ...]) -> Tensor:
    assert pre is not None
    products = (post.flatten(1)[:, index[0]] * pre.flatten(1)[:, index[1]]).sum(0)
    if elements is None:
        return products.reshape(shape)
    found = pre.new_zeros(shape)
    found.view(-1).index_add_(0, elements, products)
    return found
