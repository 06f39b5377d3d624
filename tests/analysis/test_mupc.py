"""μPC: the constants against networks written by hand, and what they keep at one scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from algorithms.nets import squared
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import pccompile


class Residual(nn.Module):
    """Pre-activation residual layers of one width, as the paper has them."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.into = nn.Linear(10, width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.out = nn.Linear(width, 3, bias=False)

    def stream(self, x: Tensor) -> list[Tensor]:
        """The stream behind each layer."""
        found = [self.into(x)]
        for layer in self.layers:
            found.append(found[-1] + layer(torch.relu(found[-1])))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stream(x)[-1])


def _rms(t: Tensor) -> float:
    return float(t.detach().square().mean().sqrt())


@pytest.mark.parametrize("depth", [4, 16, 32])
def test_the_stream_keeps_its_scale_at_any_depth(depth: int) -> None:
    torch.manual_seed(depth)
    x = torch.randn(64, 10)
    model = Residual(128, depth)
    assert pccompile.mupc(model, (x,)) is model
    stream = [_rms(h) for h in model.stream(x)]
    assert 0.9 < stream[0] < 1.1
    assert all(1.0 <= s / stream[0] < 1.7 for s in stream[1:])
    plain = Residual(128, depth)
    with torch.no_grad():
        for p in plain.parameters():
            p.normal_(0, 1 / math.sqrt(p.shape[1]))
    assert _rms(plain.stream(x)[-1]) > 1.15**depth * stream[0]


def _stiffness(depth: int) -> float:
    torch.manual_seed(depth)
    x, y = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    model = pccompile.mupc(Residual(24, depth).double(), (x,))
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=squared, granularity="layer", check=False)
    spectrum = pc.analyse((x,), target=y, kinds=["spectrum"]).spectrum
    assert spectrum is not None
    return spectrum.quantities["‖A‖²"].value


def test_errors_are_as_stiff_at_any_depth() -> None:
    found = [_stiffness(depth) for depth in (4, 12)]
    assert max(found) < 1.1 * min(found)


@pytest.mark.slow
def test_errors_are_as_stiff_in_deep_networks() -> None:
    found = [_stiffness(depth) for depth in (4, 16, 32)]
    assert max(found) < 1.1 * min(found)


def test_it_is_the_network_scaled_by_hand() -> None:
    """Forward and gradients, of the raw weights, with biases that have no factor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 4, 1)
            self.d, self.out = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            h = h + self.b(torch.relu(h))
            return self.out((self.c(h) + self.d(torch.tanh(h))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("bias")}
    pccompile.mupc(model, (x,))
    names = {n.replace("parametrizations.", "").replace(".original", ""): p for n, p in model.named_parameters()}
    own = {n: p.detach().clone().requires_grad_() for n, p in names.items()}
    assert all(torch.equal(b, own[n]) for n, b in biases.items())
    assert 0.7 < float(torch.cat([p.detach().flatten() for n, p in own.items() if n not in biases]).std()) < 1.3
    z = torch.linspace(-9, 9, 200001, dtype=torch.float64)
    mean = (z.tanh().square() * (-z * z / 2).exp()).sum() / (-z * z / 2).exp().sum()
    tanh, relu = 1 / mean.sqrt(), math.sqrt(2)
    h = F.conv2d(x, own["a.weight"] / math.sqrt(27), own["a.bias"]).tanh()
    h = h + F.conv2d(h.relu(), own["b.weight"] * relu / math.sqrt(27), own["b.bias"], padding=1, groups=2)
    left = F.conv2d(h, own["c.weight"] / math.sqrt(6 * 2), own["c.bias"])
    h = left + F.conv2d(h.tanh(), own["d.weight"] * tanh / math.sqrt(54 * 2), own["d.bias"], padding=1)
    expected = F.linear(h.mean((2, 3)), own["out.weight"] * math.sqrt(16) / 4, own["out.bias"])
    pc = pccompile.compile(model, (x,), loss=squared)
    assert torch.allclose(pc(x), expected, rtol=1e-9, atol=1e-9)
    y = torch.randn(4, 3, dtype=torch.float64)
    squared(expected, y).backward()
    pc.loss(x, target=y).backward()
    for n, p in names.items():
        assert p.grad is not None
        assert torch.allclose(p.grad, own[n].grad, rtol=1e-8, atol=1e-9), n  # type: ignore[arg-type]


class Attention(nn.Module):
    """A pre-norm block, its attention by torch or by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.norm, self.attention, self.out = (
            nn.LayerNorm(8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.by_hand:
            a = self.attention
            q, k, v = F.linear(h, a.in_proj_weight, a.in_proj_bias).chunk(3, -1)
            q, k, v = (t.reshape(len(x), 5, 2, 4).transpose(1, 2) for t in (q, k, v))
            mixed = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1) @ v
            return self.out(x + a.out_proj(mixed.transpose(1, 2).reshape(x.shape)))
        return self.out(x + self.attention(h, h, h, need_weights=False)[0])


@pytest.mark.parametrize("by_hand", [False, True])
def test_scores_are_divided_by_d(by_hand: bool) -> None:
    torch.manual_seed(0)
    model, x = Attention(by_hand).double(), torch.randn(4, 5, 8, dtype=torch.float64)
    nn.init.normal_(model.attention.in_proj_bias)
    bias = model.attention.in_proj_bias.detach().clone()
    pccompile.mupc(model, (x,))
    raw = {n: p.detach() for n, p in model.named_parameters()}
    weight = raw["attention.parametrizations.in_proj_weight.original"] / math.sqrt(8)
    q, k, v = F.linear(model.norm(x), weight, bias).chunk(3, -1)
    q, k, v = (t.reshape(4, 5, 2, 4).transpose(1, 2) for t in (q, k, v))
    mixed = ((q @ k.transpose(-1, -2) / 4).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    weight = raw["attention.out_proj.parametrizations.weight.original"] / math.sqrt(8)
    out = F.linear(mixed, weight, raw["attention.out_proj.bias"])
    expected = F.linear(x + out, raw["out.parametrizations.weight.original"] / 8, raw["out.bias"])
    assert torch.allclose(model(x), expected, atol=1e-12)


def test_scores_are_kept_where_asked() -> None:
    model, x = Attention(False), torch.randn(4, 5, 8)
    pccompile.mupc(model, (x,), attention="keep")
    assert not hasattr(model.attention.parametrizations, "in_proj_bias")


class _Net(nn.Module):
    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 3, 2)),
        (2, 4, 5),
        "inputs of a transposed convolution differ",
    ),
    "recurrent": (
        lambda: _Net(lambda m, x: m.out(m.cells(x)[0]), cells=nn.LSTM(4, 5), out=nn.Linear(5, 2)),
        (3, 2, 4),
        "a layer over time has no factors",
    ),
    "normed": (lambda: nn.Sequential(weight_norm(nn.Linear(4, 3))), (2, 4), "its weight is computed from parameters"),
    "tied": (_tied, (2, 4), "is used with other factors elsewhere"),
    "branch": (
        lambda: _Net(lambda m, x: x + m.norm(m.a(x)), a=nn.Linear(4, 4), norm=nn.LayerNorm(4)),
        (2, 4),
        "a branch ends in native_layer_norm",
    ),
    "scores": (
        lambda: _Net(
            lambda m, x: m.out((m.a(x) @ m.b(x).transpose(1, 2)).softmax(-1) @ x),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 4),
            out=nn.Linear(4, 2),
        ),
        (2, 3, 4),
        "scores are multiplied by 1, not by 1/√4",
    ),
    "temperature": (
        lambda: _Net(
            lambda m, x: m.out(torch.tanh(m.a(x) @ m.a(x).transpose(1, 2) / 2).softmax(-1) @ x),
            a=nn.Linear(4, 4),
            out=nn.Linear(4, 2),
        ),
        (2, 3, 4),
        "how its softmax is scaled cannot be told",
    ),
    "nothing": (lambda: _Net(lambda m, x: m.n(x), n=nn.LayerNorm(4)), (2, 4), "the model has no linear layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_by_name(name: str) -> None:
    make, shape, words = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict()) if name != "normed" else {}
    with pytest.raises(pccompile.CompileError) as caught:
        pccompile.mupc(model, (torch.randn(shape),))
    assert words in str(caught.value)
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in before.items())


def test_a_weight_is_scaled_once() -> None:
    x = torch.randn(2, 4)
    model = pccompile.mupc(nn.Sequential(nn.Linear(4, 3)), (x,))
    with pytest.raises(pccompile.CompileError, match="its weight is computed"):
        pccompile.mupc(model, (x,))
    with pytest.raises(pccompile.CompileError, match="unknown attention 'none'"):
        pccompile.mupc(model, (x,), attention="none")


def test_a_scaled_weight_is_no_value_that_inference_moves() -> None:
    model = pccompile.mupc(Attention(False), (torch.randn(4, 5, 8),))
    pc = pccompile.compile(model, (torch.randn(4, 5, 8),), algorithm="strict", loss=squared, check=False)
    parameters = set(pc.compiled.pc.graph.params)
    assert not [v.name for v in pc.graph.vertices if v.prediction and set(v.parents) <= parameters]
