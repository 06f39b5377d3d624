"""Traps of shape: broadcasting, odd sizes, strides, and operations with several outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, Make, OneLayer, bits, collect, normal

SHAPE: dict[str, Case] = {}
trap = collect(SHAPE)


def strided(make: Make, *order: int) -> Make:
    """The same numbers, laid out so that this permutation of the tensor is contiguous."""

    def permuted(generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        x = make(generator, dtype)
        inverse = [order.index(axis) for axis in range(x.dim())]
        return x.permute(order).contiguous().permute(inverse)

    return permuted


def every_other(make: Make) -> Make:
    """Every other column of a tensor: strided, with gaps."""
    return lambda generator, dtype: make(generator, dtype)[:, ::2]


def expanded(make: Make, *shape: int) -> Make:
    """A tensor expanded to a shape: stride 0."""
    return lambda generator, dtype: make(generator, dtype).expand(shape)


@trap("broadcast_vector", normal(2, 3, 5))
class BroadcastVector(nn.Module):
    """An operand without the leading axes: its feedback is summed over them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))
        self.shift = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale + self.shift)


@trap("broadcast_ones", normal(2, 3, 5))
class BroadcastOnes(nn.Module):
    """Axes of size 1 at the start, in the middle and at the end: summed and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 3, 5))
        self.middle = nn.Parameter(torch.randn(1, 1, 5))
        self.last = nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.first - self.middle) / (self.last**2 + 1)


@trap("broadcast_both", normal(3, 4))
class BroadcastBoth(OneLayer):
    """Both operands are broadcast: an outer difference across the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return (h.unsqueeze(0) - h.unsqueeze(1)).pow(2).sum(-1) * (h[:, :1] * h[:, 1])


@trap("broadcast_value", normal(3, 4))
class BroadcastValue(OneLayer):
    """A value, not a parameter, broadcast: a gate of each sample and a statistic of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h * torch.sigmoid(self.gate(x)) - h.mean(dim=0) + h.mean()


@trap("broadcast_python_number", normal(3, 4))
class BroadcastPythonNumber(OneLayer):
    """Numbers on either side, and reflected operators."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x)) + 2
        return (1 - h) / 3 + 2 / h + 2**h + torch.rsub(h, 1, alpha=3)


@trap("broadcast_matmul", normal(2, 3, 4, 5))
class BroadcastMatmul(nn.Module):
    """Batch axes broadcast in matmul, a matrix against a stack, and a vector on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(3, 5, 2))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.vector = nn.Parameter(torch.randn(2))
        self.row = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.matrix @ (x @ self.stack))
        return (h @ self.vector).sum(-1) + (self.row @ h).sum(-1)


@trap("broadcast_where", normal(3, 5), bits(3, 1))
class BroadcastWhere(nn.Module):
    """A condition and both branches of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(5))
        self.number = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x * self.row, self.number) + torch.where(x > 0, self.row, x)


@trap("broadcast_fused", normal(3, 4))
class BroadcastFused(OneLayer):
    """addmm, addcmul and lerp broadcast inside one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3, 1))
        self.weight = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        gram = torch.addmm(self.bias[:1], h, h.t(), beta=0.5, alpha=2)
        return torch.addcmul(h, self.weight, h, value=0.3) + torch.lerp(h, self.weight, 0.2) + gram.sum()


@trap("expanded", normal(3, 4))
class Expanded(OneLayer):
    """expand, repeat, repeat_interleave, tile and broadcast_to: each sums its copies, in its own order."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        wide = h.unsqueeze(1).expand(-1, 4, -1).reshape(-1, 20)
        return wide * h.repeat(1, 4) + h.repeat_interleave(4, dim=1) * h.tile((1, 4)).cumsum(1)


@trap("transposed_input", strided(normal(3, 4), 1, 0))
class TransposedInput(OneLayer):
    """A non-contiguous input, flattened: `view` would fail where `reshape` copies."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.sin(x)).sum(1) * x.reshape(-1)[: x.shape[0]]


@trap("channels_last_input", strided(normal(2, 3, 5, 4), 0, 2, 3, 1))
class ChannelsLastInput(nn.Module):
    """Channels-last strides travel through the convolution to a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)).flatten(1)


@trap("gapped_input", every_other(normal(3, 8)))
class GappedInput(OneLayer):
    """An input with gaps between its columns."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)) * x.reshape(-1, 4).norm(dim=1, keepdim=True)


@trap("expanded_input", expanded(normal(1, 4), 3, 4))
class ExpandedInput(OneLayer):
    """An input of stride 0: its gradient still has an entry for each element."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)).cumsum(0)


@trap("odd_pooling", normal(2, 3, 7, 5))
class OddPooling(nn.Module):
    """Odd sizes: rows that no window reads, windows that hang over the edge, unequal divisors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        pooled = F.max_pool2d(h, 2), F.max_pool2d(h, 2, ceil_mode=True), F.avg_pool2d(h, 3, 2, 1)
        uneven = F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False), F.adaptive_avg_pool2d(h, (3, 2))
        return torch.cat([p.flatten(1) for p in (*pooled, *uneven, F.adaptive_max_pool2d(h, (4, 3)))], dim=1)


@trap("overlapping_pooling", normal(2, 3, 8, 7))
class OverlappingPooling(nn.Module):
    """Windows that share elements: an element that wins twice gets two terms."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.sin(x), 3, stride=2, padding=1, dilation=1) * F.max_pool2d(x, 3, 2, 1).mean()


@trap("convolutions", normal(2, 4, 8, 7))
class Convolutions(nn.Module):
    """Strides that leave a rest, dilation, groups, padding modes and output padding: each has its adjoint."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(4, 6, 3, stride=2)
        self.grouped = nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2, groups=2)
        self.same = nn.Conv2d(4, 5, 4, padding="same", padding_mode="reflect")
        self.circular = nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=(1, 0), groups=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.up(torch.tanh(self.strided(x))), self.grouped(x), torch.sin(self.same(x)) * self.circular(x)]


@trap("resizing", normal(2, 3, 5, 4))
class Resizing(nn.Module):
    """Interpolations, padding modes, rolls, flips and pixel shuffles: adjoints that scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.tanh(self.conv(x))
        near = F.interpolate(h, scale_factor=2, mode="nearest")
        smooth = F.interpolate(h, size=(7, 9), mode="bilinear", align_corners=False)
        padded = F.pad(h, (1, 2, 3, 0), mode="replicate") * F.pad(h, (1, 2, 3, 0), value=0.5)
        return [near, smooth, padded, F.pixel_shuffle(h, 2), h.roll((1, 2), (2, 3)) * h.flip(3).rot90(2, (2, 3))]


@trap("batch_in_the_model", normal(3, 4))
class BatchInTheModel(OneLayer):
    """The batch size is read, divided by and reshaped with: a trace bakes it in."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x).view(x.size(0), -1)
        pair = torch.arange(x.shape[0], dtype=h.dtype).unsqueeze(1) + h
        average = torch.tanh(pair).sum() / x.shape[0] + h.reshape(h.numel()).mean()
        return average + h.T.unflatten(1, (-1, 1)).squeeze(2).T


@trap("batch_by_len", normal(3, 4), dynamic_batch=False)
class BatchByLen(OneLayer):
    """`len(x)` is a Python number even to torch.export: the batch size becomes fixed, with a guard."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)) / len(x)


@trap("time_first", normal(6, 3, 4), dynamic_batch=False)
class TimeFirst(nn.Module):
    """Time on axis 0 and the batch on axis 1: nothing may take axis 0 for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][-1]


@trap("no_batch", normal(4), dynamic_batch=False)
class NoBatch(OneLayer):
    """One sample without a batch axis."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x)).prod()


@trap("empty_slice", normal(3, 4))
class EmptySlice(OneLayer):
    """A tensor of no elements takes part in a cat."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return torch.cat([h, h[:, 5:], x[:, :0], torch.tanh(h)], dim=1)


@trap("many_outputs", normal(3, 4))
class ManyOutputs(OneLayer):
    """split, chunk, unbind and tensor_split; one part is read twice and one never."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        left, right = h.split([2, 3], dim=1)
        one, two, three = h.chunk(3, dim=1)
        first, *_, last = h.unbind(1)
        parts = torch.tensor_split(h, 2, dim=1)
        return left * right[:, :2] + one * two * three + (first / (last + 2)).unsqueeze(1) + left**2 * parts[1][:, :2]


@trap("statistics_pair", normal(4, 6))
class StatisticsPair(nn.Module):
    """var_mean, std_mean, sort, topk, aminmax, kthvalue, mode and median: values with statistics or integers beside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        variance, mean = torch.var_mean(h, dim=1, keepdim=True, correction=0)
        deviation, _ = torch.std_mean(h, dim=0)
        (ordered, order), (best, _) = h.sort(dim=1), h.topk(2, dim=1, largest=False)
        low, high = h.aminmax(dim=1, keepdim=True)
        third, median = h.kthvalue(3, dim=1, keepdim=True).values, h.median(dim=1, keepdim=True).values
        scaled = (h - mean) / (variance + 0.1).sqrt() * deviation + order.to(h.dtype) * ordered
        return scaled * (high - low) + best.prod(1, keepdim=True) * third + median


@trap("lstm_cell", normal(3, 4))
class CellState(OneLayer):
    """nn.LSTMCell: two outputs of one operation, each with children, one of them unread at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.cell(x, (torch.tanh(self.fc(x)), self.fc(-x)))
        h, c = self.cell(x + 1, (h, c))
        h, _ = self.cell(x - 1, (h, c))
        return h


@trap("linear_algebra", normal(3, 4))
class LinearAlgebra(OneLayer):
    """Cholesky, solve, slogdet and eigenvalues: operations with outputs that are read only in part."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        square = h.T @ h + 3 * torch.eye(5, dtype=h.dtype)
        root = torch.linalg.cholesky(square)
        solved = torch.linalg.solve(square, h.T)
        return solved.sum() + torch.linalg.slogdet(square)[1] + torch.linalg.eigvalsh(square)[0] + root.diagonal()


@trap("time_reduction", normal(3, 6, 4))
class Reductions(OneLayer):
    """Reductions over one axis, several, negative and all; kept or not; cumulative ones run backwards."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        kept = h.sum((0, -1), keepdim=True) * h.mean(-2, keepdim=True)
        running = h.cumsum(1) * h.flip(1).cumsum(1).flip(1) + h.logcumsumexp(1) + (h + 2).cumprod(1)
        return kept + running * h.logsumexp((1, 2), keepdim=True) + h.norm(p=3, dim=1, keepdim=True) + h.std()
