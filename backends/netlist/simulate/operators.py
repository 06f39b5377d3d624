"""What each projection does to the states of its source, and what each plasticity rule adds to its parameter.

States have a leading axis of replicas: independent presentations that share parameters. All is linear, so the
fixed-point simulator calls the same functions on whole numbers held in float64, where they are exact below 2⁵³.
"""

from __future__ import annotations

import warnings
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
    width = spec.populations[p.pre].size

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *shape)

    match p.op:
        case "one_to_one":
            return lambda x, w, by: shaped(x)
        case "gather":
            gather = _gather(torch.from_numpy(tensors[str(p.index)].astype("int64")), p.transpose, size, width)
            return lambda x, w, by: shaped(gather(_flat(x)))
        case "sparse":
            sparse = _sparse(p, tensors, size, width)
            return lambda x, w, by: shaped(sparse(_flat(x), w))
        case "dense":
            return lambda x, w, by: shaped(_dense(x, w, p.transpose))
        case "conv":
            return lambda x, w, by: convolution(p, shape, x, w).reshape(x.shape[0], *shape)
        case "route":
            slots = torch.from_numpy(tensors[str(p.index)].astype("int64"))
            units = None if p.elements is None else torch.from_numpy(tensors[p.elements].astype("int64"))
            return lambda x, w, by: shaped(_route(slots, units, p.transpose, size, _flat(x), by))


class Synapses:
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


def _gather(index: Tensor, transpose: bool, size: int, width: int) -> Callable[[Tensor], Tensor]:
    if not transpose and index.shape[1] == 1 and bool((index >= 0).all()):
        column = index[:, 0]
        return lambda x: x.index_select(1, column)
    rows, slots = torch.nonzero(index >= 0, as_tuple=True)
    columns = index[rows, slots]
    target, source = (columns, rows) if transpose else (rows, columns)
    synapses, ones = Synapses(target, source, (size, width)), torch.ones(len(target), dtype=torch.float64)
    return lambda x: synapses(x, ones)


def _sparse(p: Projection, tensors: Tensors, size: int, width: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    index = torch.from_numpy(tensors[str(p.index)].astype("int64"))
    target, source = (index[1], index[0]) if p.transpose else (index[0], index[1])
    elements = None if p.elements is None else torch.from_numpy(tensors[p.elements].astype("int64"))
    synapses = Synapses(target, source, (size, width), elements)

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return synapses(x, w)

    return apply


def _dense(x: Tensor, w: Tensor | None, transpose: bool) -> Tensor:
    assert w is not None
    w = w if transpose else w.t()
    return x.reshape(x.shape[0], -1, w.shape[0]) @ w


def _flat(x: Tensor) -> Tensor:
    """The units of each replica in one axis."""
    return x.reshape(len(x), -1)


def _folded(x: Tensor) -> Tensor:
    """Replicas and samples in one axis."""
    return x.reshape(-1, *x.shape[2:])


def convolution(p: Projection, shape: tuple[int, ...], x: Tensor, w: Tensor | None) -> Tensor:
    """The convolution of x [replicas, samples, channels, …] with a kernel, or the adjoint of one, onto `shape`.

    Replicas and samples come back in one axis.
    """
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
    won = _flat(winners) if units is None else _flat(winners)[:, units]
    chosen = slots.expand(x.shape[0], -1, -1).gather(2, won[:, :, None])[:, :, 0]
    if not transpose:
        return torch.where(chosen >= 0, x.gather(1, chosen.clamp(min=0)), 0)
    return x.new_zeros(x.shape[0], size).scatter_add_(1, chosen.clamp(min=0), torch.where(chosen >= 0, x, 0))


Change = Callable[[Tensor | None, Tensor, Tensor], Tensor]
"""From the states of pre and post to the sum of products for each entry of a parameter; its room may be used."""


def change(rule: Plasticity, spec: Spec, tensors: Tensors) -> Change:
    """The function of one plasticity rule, summed over replicas, rate and gain left out."""
    via = spec.named().get(rule.via or "")
    match rule.rule:
        case "outer":
            return _outer
        case "copy":
            return lambda pre, post, room: _copied(post, room, rule.axis)
        case "correlate":
            assert via is not None
            return lambda pre, post, room: _correlated(via, pre, post, room)
        case "sparse":
            assert via is not None
            return _paired(via, tensors)


def _outer(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
    assert pre is not None
    rows, columns = room.shape
    return torch.mm(post.reshape(-1, rows).t(), pre.reshape(-1, columns), out=room)


def _copied(post: Tensor, room: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return post.sum(0).reshape(room.shape)
    return post.movedim(axis + 1, -1).reshape(-1, room.shape[0]).sum(0)


def _correlated(via: Projection, pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
    assert pre is not None
    found: Tensor
    _, found, _ = torch.ops.aten.convolution_backward(
        _folded(post), _folded(pre), room, None, via.stride, via.padding, via.dilation, False,
        [0] * len(via.stride), via.groups, [False, True, False])  # fmt: skip
    return found


def _paired(via: Projection, tensors: Tensors) -> Change:
    target, source = torch.from_numpy(tensors[str(via.index)].astype("int64")).contiguous()
    elements = None if via.elements is None else torch.from_numpy(tensors[via.elements].astype("int64"))
    left, right = torch.empty(len(target), dtype=torch.float64), torch.empty(len(target), dtype=torch.float64)

    def apply(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
        assert pre is not None
        flat = room.zero_().view(-1)
        for x, e in zip(_flat(pre), _flat(post), strict=True):
            torch.index_select(e, 0, target, out=left)
            torch.index_select(x, 0, source, out=right)
            flat = flat.addcmul_(left, right) if elements is None else flat.index_add_(0, elements, left.mul_(right))
        return room

    return apply
