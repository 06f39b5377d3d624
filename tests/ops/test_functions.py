"""Functions that are decomposed or traced give autograd's gradients, for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pccompile.pipeline import Options, compile_imported, import_model

Function = Callable[[Tensor, Tensor], Any]


class Applied(nn.Module):
    """`function` of the input times a weight, and of the weight."""

    def __init__(self, function: Function, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(shape, dtype=torch.float64) + 0.5)

    def forward(self, x: Tensor) -> Any:
        return self.function(x * self.weight, self.weight)


def gradients(function: Function, *shape: int, batch: int = 4) -> tuple[Tensor, Tensor]:
    """The weight's gradient by the compiled model, for another batch than it was compiled with, and by autograd."""
    torch.manual_seed(0)
    model = Applied(function, *shape)
    imported = import_model(model, (torch.randn(3, *shape, dtype=torch.float64),))
    compiled = compile_imported(imported, Options("exact"))
    space: dict[str, Any] = {}
    exec(compiled.source.text, space)
    constants = {imported.graph.origin[k]: imported.tensors[k] for k in imported.graph.buffers}
    size = batch if imported.graph.dims else 3
    x = torch.randn(size, *shape, dtype=torch.float64)
    torch.manual_seed(1)
    outputs, context = space["predict"](
        {"weight": model.weight.detach()}, constants, {next(iter(imported.graph.inputs)): x}
    )
    torch.manual_seed(1)
    result = model(x)
    results = [r for r in (result if isinstance(result, tuple | list) else [result]) if r.is_floating_point()]
    errors = [torch.randn_like(r) for r in results]
    (expected,) = torch.autograd.grad(results, model.weight, errors)
    found = space["infer_and_learn"]({"weight": model.weight.detach()}, context, [-e for e in errors])["weight"]
    for output, r in zip(outputs, results, strict=True):
        torch.testing.assert_close(output, r.detach())
    return found, expected


MATRIX: dict[str, Function] = {
    "bilinear": lambda x, w: F.bilinear(x, x, torch.outer(w, w).expand(2, 5, 5)),
    "einsum": lambda x, w: torch.einsum("bi,ij->bj", x, torch.outer(w, w)),
    "cosine_similarity": lambda x, w: F.cosine_similarity(x, w.expand_as(x)),
    "pairwise_distance": lambda x, w: F.pairwise_distance(x, w.expand_as(x)),
    "cdist": lambda x, w: torch.cdist(x, x.flip(1)),
    "hinge_embedding": lambda x, w: F.hinge_embedding_loss(x, torch.where(x > 0, 1, -1), reduction="none"),
    "margin_ranking": lambda x, w: F.margin_ranking_loss(x[:, 0], x[:, 1], torch.ones_like(x[:, 0]), 0.3),
    "cosine_embedding": lambda x, w: F.cosine_embedding_loss(x, x.flip(1), torch.ones_like(x[:, 0])),
    "triplet_margin": lambda x, w: F.triplet_margin_loss(x, x.flip(1), x * x),
    "soft_margin": lambda x, w: F.soft_margin_loss(x, x.detach().sign()),
    "poisson_nll": lambda x, w: F.poisson_nll_loss(x, x.detach().abs()),
    "kl_div": lambda x, w: F.kl_div(F.log_softmax(x, 1), F.softmax(x.flip(1), 1), reduction="batchmean"),
    "bce": lambda x, w: F.binary_cross_entropy(torch.sigmoid(x), torch.sigmoid(x.flip(1))),
    "bce_logits": lambda x, w: F.binary_cross_entropy_with_logits(
        x, torch.sigmoid(x.flip(1)), w.detach(), pos_weight=w.detach()
    ),
    "cross_entropy": lambda x, w: F.cross_entropy(x, torch.zeros_like(x[:, 0]).long(), w.detach(), label_smoothing=0.1),
    "cross_entropy_soft": lambda x, w: F.cross_entropy(x, F.softmax(x.flip(1), 1)),
    "multilabel_soft_margin": lambda x, w: F.multilabel_soft_margin_loss(x, x.detach().sigmoid()),
    "smooth_l1": lambda x, w: F.smooth_l1_loss(x, x.flip(1)),
    "huber": lambda x, w: F.huber_loss(x, x.flip(1)),
    "l1": lambda x, w: F.l1_loss(x, x.flip(1)),
    "rms_norm": lambda x, w: F.rms_norm(x, (5,), w),
    "layer_norm": lambda x, w: F.layer_norm(x, (5,), w, w),
    "normalize": lambda x, w: F.normalize(x),
    "renorm": lambda x, w: torch.renorm(x, 2, 0, 0.5),
    "softmin": lambda x, w: F.softmin(x, 1),
    "logsumexp": lambda x, w: torch.logsumexp(x, 1),
    "logcumsumexp": lambda x, w: torch.logcumsumexp(x, 1),
    "cumsum": lambda x, w: torch.cumsum(x, 0),
    "cumprod": lambda x, w: torch.cumprod(x, 1),
    "prod": lambda x, w: x.prod(1) + x.prod(),
    "var_std": lambda x, w: (x.var(1), x.std(0), *torch.var_mean(x, 1), *torch.std_mean(x)),
    "norms": lambda x, w: (x.norm(), x.norm(p=1, dim=1), x.norm(p=float("inf"), dim=1), x.norm(3)),
    "dist": lambda x, w: torch.dist(x, x.flip(1), 2),
    "max_min": lambda x, w: (x.max(), x.min(), x.amax(1), x.amin(0), *x.aminmax(dim=1), x.max(1)[0]),
    "medians": lambda x, w: (x.median(), x.median(1)[0], x.nanmedian(1)[0], x.mode(1)[0], x.kthvalue(2, 1)[0]),
    "sorts": lambda x, w: (x.sort(1)[0], x.msort(), x.gather(1, x.argsort(1)), x.topk(2, 1)[0], x.cummax(1)[0]),
    "sort_stable": lambda x, w: torch.sort(x, stable=True, dim=1)[0],
    "quantile": lambda x, w: torch.quantile(x, 0.3, dim=1),
    "where": lambda x, w: torch.where(x > 0, x, 0.5) + torch.where(x > 0, x, x * x),
    "activations": lambda x, w: (
        F.selu(x) + F.relu6(x) + F.logsigmoid(x) + F.softsign(x) + F.tanhshrink(x) + F.hardshrink(x)
    ),
    "shrinks": lambda x, w: (
        F.softshrink(x) + F.hardsigmoid(x) + F.hardswish(x) + F.threshold(x, 0.1, 2) + F.elu(x) + F.celu(x)
    ),
    "gates": lambda x, w: F.glu(torch.cat([x, x], 1), 1) + F.mish(x) + F.gelu(x) + F.silu(x) + F.softplus(x),
    "prelu": lambda x, w: F.prelu(x, w),
    "rrelu": lambda x, w: F.rrelu(x, training=True),
    "dropout": lambda x, w: F.dropout(x, 0.4),
    "alpha_dropout": lambda x, w: F.alpha_dropout(x, 0.4, training=True),
    "special": lambda x, w: (
        torch.special.ndtr(x) + torch.special.expit(x) + torch.special.softmax(x, 1) + torch.special.log1p(x * x)
    ),
    "complex": lambda x, w: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(w), n=5),
    "complex_abs": lambda x, w: torch.fft.fft(x).abs() + torch.view_as_real(torch.complex(x, x * x) ** 2).sum(-1),
    "indexing": lambda x, w: x[:, [0, 2, 2]] + x[:, 1:2] + x[:, w.argsort()[:3]],
    "take_along": lambda x, w: torch.take_along_dim(x, x.argsort(1), 1) + torch.take(w, torch.tensor([0, 1, 1, 2, 4])),
    "writes": lambda x, w: (
        x.index_add(1, torch.tensor([0, 1]), x[:, :2])
        .index_copy(1, torch.tensor([3]), x[:, :1])
        .index_fill(1, torch.tensor([2]), 1.0)
    ),
    "scatters": lambda x, w: x.scatter(1, x.argsort(1)[:, :2], x[:, 2:4]).scatter_add(1, x.argsort(1), x),
    "scatter_reduce": lambda x, w: x.scatter_reduce(1, torch.zeros_like(x).long(), x * x, "amax"),
    "masked": lambda x, w: x.masked_fill(x > 1, 0.0).masked_scatter(x < -1, x * x) + x.masked_fill(x > 0, w[0]),
    "masked_select": lambda x, w: torch.masked_select(w, w > 0.7),
    "shuffles": lambda x, w: x.roll(1, 1) + x.flip(1) + x.movedim(0, 1).swapaxes(0, 1) + x.repeat(1, 2)[:, 3:8],
    "diagonals": lambda x, w: (
        torch.diag_embed(x).diagonal(dim1=1, dim2=2) + torch.outer(w, w).tril().trace() + torch.diag(w).sum(0)
    ),
    "repeat_interleave": lambda x, w: x.repeat_interleave(2, 1) + torch.tile(x, (1, 2)),
    "rot90": lambda x, w: torch.rot90(w.expand(3, 5), 1, (0, 1)) @ x.t()[:3],
    "linalg": lambda x, w: (
        torch.linalg.solve(torch.diag(w) + 0.1, x.t()),
        torch.linalg.inv(torch.diag(w) + 0.1),
        torch.linalg.det(torch.diag(w) + 0.1),
    ),
    "decompositions": lambda x, w: (
        torch.linalg.cholesky(torch.diag(w) + 0.1),
        torch.linalg.slogdet(torch.diag(w) + 0.1)[1],
        torch.linalg.eigvalsh(torch.outer(w, w) + torch.diag(w.cumsum(0))),
    ),
    "products": lambda x, w: (
        x @ w + torch.mv(x, w) + torch.vdot(w, w) + torch.addmv(x[:, 0], x, w) + torch.kron(w, w).sum()
    ),
    "cross": lambda x, w: torch.linalg.cross(x[:, :3], x[:, 2:]),
    "matrix_exp": lambda x, w: torch.linalg.matrix_exp(torch.outer(w, w) / 5),
    "embedding_bag": lambda x, w: F.embedding_bag(torch.tensor([[0, 1], [2, 2]]), w.expand(4, 5) * 1.0, mode="mean"),
    "embedding_bag_max": lambda x, w: F.embedding_bag(torch.tensor([[0, 1], [2, 2]]), torch.outer(w, w), mode="max"),
    "weight_norm": lambda x, w: x @ torch._weight_norm(torch.outer(w, w), w[:, None], 0),
    "trapezoid": lambda x, w: torch.trapezoid(x, dim=1) + torch.diff(x, dim=1).sum(1) + torch.logdet(torch.diag(w)),
    "lerp_add": lambda x, w: torch.lerp(x, x * x, w) + torch.addcmul(x, x, w, value=0.3) + torch.addcdiv(x, x, w),
    "powers": lambda x, w: x**2 + w**x + 2**x + x.abs() ** w + torch.float_power(w, 2) + torch.logaddexp(x, w),
    "rounding": lambda x, w: x.round() + x % 2 + torch.fmod(x, w) + x.frac() + torch.remainder(x, w) + x.sign(),
}
IMAGES: dict[str, Function] = {
    "max_pool1d": lambda x, w: F.max_pool1d(x[:, :, 0], 2),
    "max_pool2d": lambda x, w: F.max_pool2d(x, 3, 2, 1),
    "avg_pools": lambda x, w: (F.avg_pool1d(x[:, :, 0], 2), F.avg_pool2d(x, 2), F.lp_pool2d(x.abs(), 2.0, 2)),
    "adaptive": lambda x, w: (
        F.adaptive_avg_pool2d(x, (3, 2)),
        F.adaptive_avg_pool1d(x[:, 0], 3),
        F.adaptive_max_pool2d(x, 2),
    ),
    "adaptive_max1d": lambda x, w: F.adaptive_max_pool1d(x[:, 0], 3),
    "pools3d": lambda x, w: (
        F.max_pool3d(x, 2, padding=1),
        F.avg_pool3d(x, 2),
        F.adaptive_avg_pool3d(x, 2),
        F.adaptive_max_pool3d(x, 2),
    ),
    "unpool": lambda x, w: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "pads": lambda x, w: (
        F.pad(x, (1, 2)).sum()
        + F.pad(x, (1, 2, 0, 1), "reflect").sum()
        + F.pad(x, (1, 1, 1, 1), "replicate").sum()
        + F.pad(x, (1, 1, 1, 1), "circular").sum()
    ),
    "upsample": lambda x, w: (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, (7, 9), mode="bilinear"),
        F.interpolate(x, (7, 9), mode="bicubic"),
    ),
    "upsample1d": lambda x, w: (
        F.interpolate(x[:, 0], scale_factor=2, mode="linear"),
        F.interpolate(x[:, 0], 9, mode="nearest-exact"),
    ),
    "folds": lambda x, w: F.fold(F.unfold(x, 2), (4, 6), 2) + x.unfold(2, 2, 1).sum(),
    "pixel_shuffle": lambda x, w: F.pixel_unshuffle(F.pixel_shuffle(torch.cat([x, x], 1), 2), 2),
    "channel_shuffle": lambda x, w: F.channel_shuffle(x, 2),
    "grid_sample": lambda x, w: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).double().expand(len(x), 2, 3), [len(x), 2, 4, 6]) * 0.9
    ),
    "instance_norm": lambda x, w: F.instance_norm(x),
    "group_norm": lambda x, w: F.group_norm(x, 2),
    "local_response": lambda x, w: F.local_response_norm(x, 3),
    "convolutions": lambda x, w: (
        F.conv2d(x, w[:2, :2, :2].expand(2, 2, 2, 2)),
        F.conv_transpose2d(x, w[:2, :2, :2].expand(2, 2, 2, 2), stride=2),
    ),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, x, x.flip(1)),
    "feature_dropout": lambda x, w: F.dropout2d(x, 0.5),
}


@pytest.mark.quick(36)
@pytest.mark.parametrize("name", MATRIX)
def test_of_matrix(name: str) -> None:
    """x is [batch, 5]."""
    torch.testing.assert_close(*gradients(MATRIX[name], 5), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", IMAGES)
def test_of_images(name: str) -> None:
    """x is [batch, 2, 4, 6]."""
    torch.testing.assert_close(*gradients(IMAGES[name], 2, 4, 6), rtol=1e-9, atol=1e-11)
