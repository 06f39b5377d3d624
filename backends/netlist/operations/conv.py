"""Convolutions: a kernel that all places share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.backends.netlist.format import Projection
from pccompile.backends.netlist.operations.base import Change, LearningRule, Message, Operation, Shape, Source, size
from pccompile.backends.netlist.operations.dense import cores_of_channels
from pccompile.backends.netlist.operations.synapse_list import Synapses

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Conv(Operation):
    """The convolution with kernel `param`, without bias."""

    name = "conv"
    needs, may = ("param", "stride", "padding", "dilation"), ("groups",)
    rule = "correlate"
    kernel = True

    def problems(self) -> Iterator[str]:
        yield from misfit(self.p, self.param.shape, *self.ends)

    def message(self) -> Message:
        def convolved(x: Tensor, w: Tensor | None) -> Tensor:
            assert w is not None
            return convolution(self.p, self.post.shape, x, w).reshape(x.shape[0], *self.post.shape)

        return convolved

    def listed(self) -> Synapses:
        return kernel_synapses(self.p, self.param.shape, *self.ends)

    def count(self) -> int:
        return size(self.ends[0]) * size(self.param.shape[1:])

    def most_terms(self) -> int:
        shape = self.param.shape
        return math.prod(shape) // shape[1] // self.p.groups if self.p.transpose else math.prod(shape[1:])

    def sent(self, inside: np.ndarray) -> np.ndarray:
        # The adjoint of the convolution with a kernel of ones; the channels of a group all have the same number.
        p, rank, shape = self.p, len(self.p.stride), self.pre.shape
        channels = inside.shape[-rank - 1] // p.groups
        summed = inside.reshape(-1, p.groups, channels, *inside.shape[-rank:]).sum(2)
        x = torch.from_numpy(summed.astype(np.float64))
        ones = torch.ones(p.groups, 1, *self.param.shape[2:], dtype=torch.float64)
        back = msgspec.structs.replace(p, transpose=not p.transpose)
        got = convolution(back, shape, x[None], ones)
        each = shape[-rank - 1] // p.groups
        return np.repeat(got.numpy().round().astype(np.int64), each, axis=1).reshape(-1)

    def channels(self, inside: np.ndarray) -> np.ndarray:
        axes = tuple(i for i in range(inside.ndim) if i != inside.ndim - len(self.p.stride) - 1)
        found: np.ndarray = np.any(inside, axis=axes)
        return found

    def stored(self, where: np.ndarray, count: int) -> np.ndarray:
        post, shape, groups = self.post.shape, self.param.shape, self.p.groups
        on = cores_of_channels(where, post, len(post) - len(self.p.stride) - 1, count)
        ones = [1] * (len(shape) - 2)
        if not self.p.transpose:
            return np.broadcast_to(on.reshape(*on.shape, 1, *ones), (count, *shape))
        wide = np.repeat(on.reshape(count, groups, shape[1]), shape[0] // groups, axis=1)
        return np.broadcast_to(wide.reshape(count, shape[0], shape[1], *ones), (count, *shape))

    def numpy_source(self, x: str, operand: str, source: Source) -> str:
        name = "conv_adjoint" if self.p.transpose else "conv"
        return f"{name}({x}, {operand}, {self.pre.shape}, {self.post.shape}, {geometry(self.p)})"

    def nengo_transform(self, source: Source) -> str | None:
        if not self._plain():
            return None
        p, rank, kernel = self.p, len(self.p.stride), self.param.shape
        shape, to = (end.shape[-rank - 1 :] for end in (self.pre, self.post))
        padding = "same" if any(p.padding) else "valid"
        groups = f", groups={p.groups}" if p.groups > 1 else ""
        ends = "(-2, -1)" if p.transpose else "(-1, -2)"
        name, more = ("ConvolutionTranspose", f", output_shape={to}") if p.transpose else ("Convolution", "")
        return (f"nengo.{name}({to[0]}, {shape}{more}, kernel_size={kernel[2:]}, strides={p.stride}, "
                f"padding={padding!r}, channels_last=False{groups}, "
                f"init={self.scale()}np.moveaxis({source(p.param)}, (0, 1), {ends}))")  # fmt: skip

    def _plain(self) -> bool:
        """Whether Nengo's own convolution is that of the projection."""
        p, kernel, rank = self.p, self.param.shape[2:], len(self.p.stride)
        valid = not any(p.padding) and (not p.transpose or set(p.stride) == {1})
        same = set(p.stride) == {1} and all(k == 2 * q + 1 for k, q in zip(kernel, p.padding, strict=True))
        one = math.prod(self.pre.shape[: -rank - 1]) == 1 and set(p.dilation) == {1}
        return one and rank < 3 and (valid or same) and not (p.transpose and p.groups > 1)


class Correlate(LearningRule):
    """Δ param = rate × the correlation of post with pre, in the geometry of projection `via`."""

    name = "correlate"
    operation = Conv.name
    takes_via = True

    def problems(self) -> Iterator[str]:
        yield from misfit(self.wiring, self.param.shape, self.post.shape, self.pre.shape)

    def change(self) -> Change:
        via = self.wiring

        def products(pre: Tensor | None, post: Tensor, room: Tensor) -> Tensor:
            assert pre is not None
            found: Tensor
            _, found, _ = torch.ops.aten.convolution_backward(
                _folded(post), _folded(pre), room, None, via.stride, via.padding, via.dilation, False,
                [0] * len(via.stride), via.groups, [False, True, False])  # fmt: skip
            return found

        return products

    def synapses(self) -> Synapses:
        return kernel_synapses(self.wiring, self.param.shape, self.post.shape, self.pre.shape).by_entry()

    def products(self) -> int:
        return int(Conv(self.wiring, self.populations, self.tensors).fan_in().sum())

    def numpy_source(self, e: str, x: str, source: Source) -> str:
        to, of = self.post.shape, self.pre.shape
        return f"correlate({e}, {x}, {self.param.shape}, {to}, {of}, {geometry(self.wiring)})"


def misfit(p: Projection, param: Shape, post: Shape, pre: Shape) -> Iterator[str]:
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


def convolution(p: Projection, shape: Shape, x: Tensor, w: Tensor) -> Tensor:
    """The convolution of x [replicas, samples, channels, …] with a kernel, or the adjoint of one, onto `shape`.

    Replicas and samples come back in one axis.
    """
    rank = len(p.stride)
    if not p.transpose:
        return _CONV[rank](_folded(x), w, None, p.stride, p.padding, p.dilation, p.groups)
    least = [(x.shape[i - rank] - 1) * p.stride[i] - 2 * p.padding[i] + p.dilation[i] * (w.shape[i - rank] - 1) + 1
             for i in range(rank)]  # fmt: skip
    extra = [shape[i - rank] - least[i] for i in range(rank)]
    return _ADJOINT[rank](_folded(x), w, None, p.stride, p.padding, extra, p.groups, p.dilation)


def _folded(x: Tensor) -> Tensor:
    """Replicas and samples in one axis."""
    return x.reshape(-1, *x.shape[2:])


def kernel_synapses(p: Projection, kernel: Shape, post: Shape, pre: Shape) -> Synapses:
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
        return Synapses(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    to, of, tap = flat(0, post[2:]), flat(1, pre[2:]), flat(2, kernel[2:])
    sample, out, into = (a.reshape(-1, 1) for a in np.indices((post[0], kernel[0], kernel[1])))
    source = out // (kernel[0] // p.groups) * kernel[1] + into
    sizes = [math.prod(shape[2:]) for shape in (post, pre, kernel)]
    return Synapses(
        ((sample * post[1] + out) * sizes[0] + to).reshape(-1),
        ((sample * pre[1] + source) * sizes[1] + of).reshape(-1),
        ((out * kernel[1] + into) * sizes[2] + tap + 0 * sample).reshape(-1),
    )


def geometry(p: Projection) -> str:
    """The source of a convolution's geometry."""
    return f"({p.stride}, {p.padding}, {p.dilation}, {p.groups})"
