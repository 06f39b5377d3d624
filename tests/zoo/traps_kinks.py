"""Traps of values: kinks, ties, integers, singular branches, overflow, and operations that decompose wrongly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Case, OneLayer, collect, constant, grid, normal, positive, tokens

KINKS: dict[str, Case] = {}
trap = collect(KINKS)


class Weighted(nn.Module):
    """A factor beside the trap, so that there is a parameter; it is 1 so that ties stay ties."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@trap("kinks", grid(4, 6))
class Kinks(Weighted):
    """Exactly at the kink: relu and abs give 0, clamp and hardtanh their own convention, relu6 and others too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        h = x * self.scale
        clamped = [h.clamp(-1, 1), h.clamp(min=0), h.clamp_max(2), F.hardtanh(h), F.relu6(3 * h), F.threshold(h, 1, 7)]
        shrunk = [F.hardshrink(h, 1.0), F.softshrink(h, 1.0), F.hardswish(3 * h), F.hardsigmoid(3 * h)]
        return [F.relu(h), h.abs(), F.leaky_relu(h), F.elu(h), F.celu(h), F.selu(h), *clamped, *shrunk]


@trap("kinked_losses", grid(4, 6), grid(4, 6))
class KinkedLosses(Weighted):
    """Losses at their corners: |0|, the border of smooth_l1 and huber, the margin of a hinge."""

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        h = x * self.scale
        side = torch.where(y > 0, 1, -1)
        return [F.l1_loss(h, y), F.smooth_l1_loss(h, y), F.huber_loss(h, y), F.hinge_embedding_loss(h, side)]


@trap("clamp_by_tensor", grid(4, 6), grid(4, 6))
class ClampByTensor(Weighted):
    """Bounds that are tensors take the gradient where they hold; at a tie the convention decides."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x * self.scale
        return torch.clamp(h, y - 1, y + 1) * h + torch.clamp(h, min=y)


@trap("max_pool_ties", grid(2, 3, 7, 6))
class MaxPoolTies(Weighted):
    """Equal elements in one window: the whole error goes to the index that the forward pass chose."""

    def forward(self, x: Tensor) -> list[Tensor]:
        h = x * self.scale
        line = F.max_pool1d(h.flatten(1), 4)
        return [line, F.max_pool2d(h, 2), F.max_pool2d(h, 3, 2, 1), F.adaptive_max_pool2d(h, 3)]


@trap("max_pool_indices", grid(2, 3, 6, 4))
class MaxPoolIndices(Weighted):
    """Pooling that returns its indices, and unpooling that reads them."""

    def forward(self, x: Tensor) -> Tensor:
        pooled, index = F.max_pool2d(x * self.scale, 2, return_indices=True)
        return F.max_unpool2d(torch.sin(pooled), index, 2)


@trap("extremum_ties", grid(4, 6), grid(4, 6))
class ExtremumTies(Weighted):
    """maximum splits ½ and ½, amax evenly among the tied, max(dim) all to one index, max() evenly again."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x * self.scale
        pairs = torch.maximum(h, y) * 2 + torch.minimum(h, y) + torch.fmax(h, y) * 3
        spread = h.amax(1, keepdim=True) + h.amin((0, 1)) * 2 + h.max(0).values + h.min(1, keepdim=True).values
        return pairs + spread + h.max() - h.min() + h.cummax(1).values


@trap("order_ties", grid(4, 6))
class OrderTies(Weighted):
    """Ties in sort, topk, median and kthvalue: the feedback follows the permutation of the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.scale
        ranked = h.sort(dim=1, stable=True).values * torch.arange(1, 7, dtype=h.dtype)
        return ranked + h.topk(2, 1).values.sum(1, keepdim=True) + h.median(1, keepdim=True).values + h.median()


@trap("zeros", grid(4, 6))
class Zeros(Weighted):
    """Products over exact zeros, norms and powers at 0: division-free rules, and no NaN."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.scale
        products = h.prod(1, keepdim=True) + h.prod() + h.cumprod(1)
        zero = (h - h).norm(dim=1, keepdim=True) + (h - h).norm()
        return products + zero + h**2 + h**0 + h**1 + torch.xlogy(h * h, h * h + 1) + torch.sinc(h)


@trap("zero_derivatives", normal(3, 4))
class ZeroDerivatives(OneLayer):
    """sign, floor, round, ceil and trunc: float in and out, rule 0, so `fc` gets zeros along them."""

    def forward(self, x: Tensor) -> Tensor:
        h = 3 * self.fc(x)
        steps = h.sign() + h.floor() + h.round() + h.ceil() + h.trunc()
        return steps * x.sum() + h.frac() + torch.fmod(h, 2) + h.remainder(3)


@trap("only_zero_derivatives", normal(3, 4))
class OnlyZeroDerivatives(OneLayer):
    """The only path goes through `round`: zeros, not None."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).round()


@trap("singular_branches", grid(4, 6))
class SingularBranches(Weighted):
    """The branch not taken is singular; the double `where` keeps 0·∞ out of the gradient and must survive."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.scale
        safe = torch.where(h > 0, h, torch.ones_like(h))
        root = torch.where(h > 0, safe.sqrt(), torch.zeros_like(h))
        return root + torch.where(h > 0, safe.log() + 1 / safe, h) + torch.nan_to_num(h)


@trap("overflow", constant([-750.0, -95.0, -40.0], [40.0, 95.0, 750.0], [-9.5, 0.0, 19.5], [-20.5, 1.0, 90.0]))
class Overflow(Weighted):
    """|x| ≥ 90: derivatives through exp-forms of softplus, sigmoid, silu, mish, gelu and their kin are NaN."""

    def forward(self, x: Tensor) -> list[Tensor]:
        h = x * self.scale
        smooth = [F.softplus(h), torch.sigmoid(h), F.silu(h), F.mish(h), F.gelu(h), F.gelu(h, approximate="tanh")]
        logs = [F.logsigmoid(h), F.log_softmax(h, 1), torch.logsumexp(h, 1), torch.logaddexp(h, -h), F.softmin(h, 1)]
        return [*smooth, *logs, torch.tanh(h), torch.erf(h), F.elu(h), F.softsign(h), torch.atan(h), torch.asinh(h)]


@trap("log_ndtr", normal(3, 4))
class LogNdtr(OneLayer):
    """Decomposed and then differentiated, `special.log_ndtr` is wrong in its tail."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.log_ndtr(6 * self.fc(x))


@trap("safe_softmax", normal(2, 3, 5, 4))
class SafeSoftmax(OneLayer):
    """A row of attention that is masked out whole: `_safe_softmax` gives zeros, its decomposition NaN gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(5, 5), -1).bool())

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return F.scaled_dot_product_attention(h, torch.sin(h), h, attn_mask=self.mask)


@trap("index_fill", normal(3, 4))
class IndexFill(OneLayer):
    """`index_fill` decomposes into a wrong rule; the filled value is a tensor with a gradient here."""

    def __init__(self) -> None:
        super().__init__()
        self.fill = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("columns", torch.tensor([0, 3]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.fc(x).index_fill(1, self.columns, self.fill))


@trap("integers", normal(3, 4), tokens(5, 3))
class Integers(OneLayer):
    """Integer and boolean tensors beside floats: no error of their own, yet factors of others' errors."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.fc(x)
        chosen = F.one_hot(label, 5) * h
        distance = (torch.arange(5) - label.unsqueeze(1)).abs() // 2
        return chosen + h * (h > 0) - h * distance + (label % 3).unsqueeze(1) / (h**2 + 1) + (~(h > 1)).sum(1, True) * h


@trap("chosen_by_argmax", normal(3, 4))
class ChosenByArgmax(OneLayer):
    """Indices computed from a float value and used to select: selection passes errors, the choice none."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        best = h.argmax(dim=1, keepdim=True)
        order = h.argsort(dim=1)
        return h.gather(1, best) * h + h.gather(1, order) + h[torch.arange(h.shape[0]), best[:, 0], None]


@trap("take_along_dim", normal(3, 4), dynamic_batch=False)
class TakeAlongDim(OneLayer):
    """torch.export fixes the batch size here, by a guard, without saying so at export."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return torch.take_along_dim(h, h.argsort(dim=1), dim=1).cumsum(1)


@trap("casts", normal(3, 4))
class Casts(OneLayer):
    """A cast up and back: the error is cast back to the dtype of each value."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        return (h.double() ** 3).to(h.dtype) + h.to(torch.int64) + h.type_as(x)


@trap("special", positive(3, 4), positive(3, 4))
class Special(Weighted):
    """Functions whose derivative is another special function, and quotients of several kinds."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x * self.scale
        pairs = torch.atan2(h, y) + torch.hypot(h, y) + h**y + torch.logaddexp(h, y) + torch.copysign(h, y)
        one = torch.lgamma(h) + torch.digamma(h) + torch.erfinv(h / 2) + torch.expm1(h) + torch.log1p(h) + h.rsqrt()
        return pairs + one + torch.special.i0(h) + torch.cosh(h) + torch.special.entr(h) + torch.logit(h / 2)
