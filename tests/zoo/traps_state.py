"""Traps of state: statistics, random draws, writes in place, views and hooks."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import NUMBERS, Case, OneLayer, bits, collect, draw, normal, squared_error

STATE: dict[str, Case] = {}
trap = collect(STATE)


class Normed(OneLayer):
    """A layer under batch norm."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5, bias=False)  # the norm would cancel a bias
        self.bn = nn.BatchNorm1d(5, **options)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.bn(self.fc(x)))


@trap("batch_norm", normal(6, 4))
class BatchNorm(Normed):
    """Running statistics move once a batch, not once an inference step; the Jacobian couples the samples."""


STATE["batch_norm_cumulative"] = Case(  # running statistics as a plain average: the momentum is 1 / batches seen
    "batch_norm_cumulative",
    partial(Normed, momentum=None),
    draw(normal(6, 4)),
    squared_error,
    NUMBERS,
    exported=False,  # torch.export alone cannot read the count of batches as a number
)
STATE["batch_norm_untracked"] = Case(  # neither affine parameters nor running statistics
    "batch_norm_untracked",
    partial(Normed, affine=False, track_running_stats=False),
    draw(normal(6, 4)),
    squared_error,
    NUMBERS,
)


@trap("batch_norm_frozen", normal(6, 4))
class BatchNormFrozen(Normed):
    """A batch norm in evaluation mode inside a model in training mode: fixed statistics, no coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.bn.eval()

    def train(self, mode: bool = True) -> "BatchNormFrozen":
        super().train(mode)
        self.bn.eval()
        return self


@trap("batch_norm_shared", normal(6, 4))
class BatchNormShared(Normed):
    """One batch norm called twice a pass: its statistics move twice, in that order."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.bn(self.fc(x)))
        return self.bn(2 * h + 1) * h


@trap("dropout", normal(6, 4), random=True)
class Dropout(OneLayer):
    """One mask a batch: forward, every inference step and every Jacobian share it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.dropout(self.fc(x), 0.4, training=True)) ** 2


@trap("dropout_inplace", normal(6, 4), random=True)
class DropoutInplace(OneLayer):
    """In-place dropout becomes a bernoulli draw and a multiplication in the exported graph."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.drop(self.fc(x) + 1))


@trap("dropout_twice", normal(6, 4), random=True)
class DropoutTwice(OneLayer):
    """Two calls are two draws: merging equal expressions would make them one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.drop(h) * self.drop(h)


@trap("dropout_kinds", normal(4, 6, 5, 3), random=True)
class DropoutKinds(nn.Module):
    """Masks that are broadcast over an image, and one that shifts as well as scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.dropout2d(self.conv(x), 0.4)) + F.alpha_dropout(x, 0.3, training=True)


@trap("noise", normal(6, 4), random=True)
class Noise(OneLayer):
    """Drawn noise added to a value, as wide as the value and as wide as the batch."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return torch.tanh(h + 0.3 * torch.randn_like(h)) * torch.rand(h.shape[0], 1, dtype=h.dtype)


@trap("random_slope", normal(6, 4), random=True)
class RandomSlope(OneLayer):
    """rrelu: an activation whose slope is drawn for each element."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rrelu(self.fc(x), training=True) ** 2


@trap("relu_inplace", normal(3, 4))
class ReluInplace(OneLayer):
    """`relu_` overwrites its input: the value before it is still a value of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        doubled = 2 * h
        return doubled.relu_() * h


@trap("read_before_write", normal(3, 4))
class ReadBeforeWrite(OneLayer):
    """The same name before and after a write: `early` reads the old value, the result both."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        early = h + 1
        h += 3 * x.sum(1, keepdim=True)
        h.mul_(2)
        return early * h


@trap("slice_assignment", normal(3, 4))
class SliceAssignment(OneLayer):
    """Assignment to a slice: what was there takes no gradient, what was written does."""

    def forward(self, x: Tensor) -> Tensor:
        h = 2 * self.fc(x)
        h[:, 1:3] = torch.sin(x[:, :2])
        h[0] = 0.5
        return h * h


@trap("write_through_view", normal(3, 4))
class WriteThroughView(OneLayer):
    """A write to a view changes its base, and other views of it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x) * 1
        column, flat = h[:, 2], h.view(-1)
        column.mul_(x[:, 0])
        flat[1:4].add_(1)
        return torch.tanh(h) * h.T.sum()


@trap("masked_fill_inplace", normal(3, 4), bits(3, 5))
class MaskedFillInplace(OneLayer):
    """Where the mask is set the gradient is 0."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.fc(x) + 1
        h.masked_fill_(mask, -3.0)
        return F.softmax(h, dim=1)


@trap("write_by_index", normal(3, 4))
class WriteByIndex(OneLayer):
    """index_put with and without accumulation, copy_ and zero_: each needs a rule for both operands."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        grown = h.index_put((torch.tensor([0, 2, 2]), torch.tensor([1, 1, 1])), h[:, 0].sum(), accumulate=True)
        grown[torch.tensor([0, 1]), torch.tensor([3, 4])] = x[0, :2]
        blank = torch.empty_like(grown).copy_(grown)
        blank[:, 0].zero_()
        return blank * grown


@trap("filled_buffer", normal(3, 4))
class FilledBuffer(OneLayer):
    """An output allocated first and filled in a loop: a chain of writes, each reading the one before."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 5)
        h = self.fc(x)
        for column in range(1, 5):
            out[:, column] = torch.tanh(h[:, column] + out[:, column - 1])
        return out


@trap("input_written", normal(3, 4))
class InputWritten(OneLayer):
    """The first layer writes into the input: the caller's tensor changes, the gradient is the old value's."""

    def forward(self, x: Tensor) -> Tensor:
        F.leaky_relu(x, 0.2, inplace=True)
        return torch.tanh(self.fc(x)) + x.sum()


@trap("counted_calls", normal(3, 4))
class CountedCalls(OneLayer):
    """Buffers as state: a counter and a moving average, each moved once a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        self.calls += 1
        self.average.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return torch.tanh(h - self.average)


@trap("float_mask_buffer", normal(3, 5, 4))
class FloatMaskBuffer(OneLayer):
    """A mask of -inf and a fixed weight as buffers: neither learns, and no gradient may turn NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((5, 5), float("-inf")), 1))
        self.register_buffer("basis", torch.randn(5, 5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return torch.softmax(h @ h.transpose(1, 2) + self.mask, dim=-1) @ (h @ self.basis)


@trap("views", normal(3, 4))
class Views(OneLayer):
    """A chain of views: no value of its own for any, strides that `view` depends on."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        w = h.t().reshape(-1).view(5, -1).permute(1, 0)
        return w.unsqueeze(1).transpose(0, 2).flatten().unflatten(0, (5, -1)).squeeze() * torch.diagonal(h).sum()


@trap("overlapping_views", normal(3, 9), dynamic_batch=False)
class OverlappingViews(nn.Module):
    """Windows from unfold and as_strided share elements: their feedback adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        windows = h.unfold(1, 4, 2)
        return torch.sin(windows) * torch.as_strided(h, (3, 3, 4), (9, 2, 1))


@trap("forward_hooks", normal(3, 4))
class ForwardHooks(OneLayer):
    """Hooks that change a layer's input and output and count its calls: once a batch, part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fc.register_forward_pre_hook(lambda module, arguments: (torch.sin(arguments[0]),))
        self.fc.register_forward_hook(self._count)

    def _count(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.calls += 1
        return 2 * output

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


@trap("backward_hook", normal(3, 4))
class BackwardHook(OneLayer):
    """A full backward hook that halves what a layer passes down: no forward graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)
        self.out.register_full_backward_hook(lambda module, inner, outer: (0.5 * inner[0],))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x)))
