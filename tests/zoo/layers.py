"""Layers that people build networks from: graphs, packed sequences, diffusion, attention, state spaces, spectra."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.case import NUMBERS, Case, Make, catalogue, draw, normal, squared_error, tokens


class Scattered(nn.Module):
    """Attention over the edges of a graph: scatter_reduce for the softmax's maximum, scatter_add for its sums."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.score = nn.Linear(4, 6), nn.Linear(12, 1)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, end = edges.unbind(1)
        h = self.project(nodes)
        score = F.leaky_relu(self.score(torch.cat([h[source], h[end]], 1))).squeeze(1)
        most = torch.full_like(h[:, 0], -math.inf).scatter_reduce(0, end, score, "amax")
        weight = torch.exp(score - most[end])
        total = torch.zeros_like(h[:, 0]).scatter_add(0, end, weight)
        messages = h[source] * (weight / total[end]).unsqueeze(1)
        mean = torch.zeros_like(h).scatter_reduce(
            0, end.unsqueeze(1).expand(-1, 6), messages, "mean", include_self=False
        )
        return torch.zeros_like(h).index_add(0, end, messages) + mean


class Packed(nn.Module):
    """Sequences of several lengths through a packed LSTM; lengths are numbers of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.lengths = torch.tensor([6, 4, 1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        packed, (h, _) = self.lstm(pack_padded_sequence(x, self.lengths, batch_first=True))
        return pad_packed_sequence(packed, batch_first=True)[0], h


class Masked(nn.Module):
    """Sequences of several lengths through a GRU cell that keeps the state where a sequence has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            h = torch.where((t < lengths).unsqueeze(1), self.cell(x[:, t], h), h)
        return h


class Stacked(nn.Module):
    """Two layers, both directions, dropout between them."""

    def __init__(self, kind: type[nn.RNNBase], dropout: float = 0.0) -> None:
        super().__init__()
        self.recurrent = kind(4, 5, num_layers=2, bidirectional=True, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x)[0]


class TimedBlock(nn.Module):
    """A residual block that a time embedding scales and shifts."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, before), nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(8, 2 * after)
        self.norm2, self.conv2 = nn.GroupNorm(2, after), nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        return self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift)) + self.skip(x)


class PixelAttention(nn.Module):
    """Attention of each pixel to all others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(2, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(1, 2).reshape(batch, channels, height, width))


class DiffusionUNet(nn.Module):
    """The denoiser of a diffusion model: two scales, attention at the lower, sinusoidal time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.down, self.pool = TimedBlock(4, 4), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.middle, self.attention = TimedBlock(6, 6), PixelAttention(6)
        self.up = TimedBlock(10, 4)
        self.last = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(100.0) * torch.arange(2, dtype=x.dtype) / 2)
        angle = step.to(x.dtype)[:, None] * frequency
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = self.down(self.first(x), time)
        low = self.attention(self.middle(self.pool(h), time))
        wide = F.interpolate(low, scale_factor=2, mode="nearest")
        return self.last(self.up(torch.cat([wide, h], dim=1), time))


class Attending(nn.Module):
    """nn.MultiheadAttention across two sequences, keys and values of other widths, with a mask and its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=5, add_bias_kv=True, batch_first=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
        return self.attention(q, k, v, attn_mask=mask)


class Translator(nn.Module):
    """nn.Transformer's encoder and decoder, norms first, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(8, 2, 1, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=source.dtype)
        return self.both(source, target, tgt_mask=mask, tgt_is_causal=True)


class Normed(nn.Module):
    """A convolution and a linear layer with normalised weights."""

    def __init__(self, conv: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.conv, self.linear = conv, linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.conv(x)).mean(dim=2))


def parametrised(norm: str) -> nn.Module:
    wrap = getattr(parametrizations, norm)
    return Normed(wrap(nn.Conv1d(3, 4, 2)), wrap(nn.Linear(4, 2)))


def hooked(norm: str) -> nn.Module:
    wrap = getattr(nn.utils, norm)
    return Normed(wrap(nn.Conv1d(3, 4, 2)), wrap(nn.Linear(4, 2)))


class Quantise(torch.autograd.Function):
    """Rounding to eighths whose gradient is passed on where the value is not clipped."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.clamp(torch.round(x * 8) / 8, -1, 1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Quantised(nn.Module):
    """Weights and activations rounded straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, Quantise.apply(self.first.weight), self.first.bias)
        return self.second(Quantise.apply(torch.tanh(h)))


class SpatialTransformer(nn.Module):
    """An image resampled where the image itself says (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(2 * 5 * 5, 6)
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.eye(2, 3, dtype=x.dtype)
        grid = F.affine_grid(identity + 0.1 * self.where(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return self.conv(F.grid_sample(x, grid, padding_mode="border", align_corners=False))


class FourierLayer(nn.Module):
    """A spectral convolution of a Fourier neural operator (Li et al. 2021): complex weights on the low modes."""

    def __init__(self, modes: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(2, 3, modes, 2) / 2)
        self.skip = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", spectrum[..., : self.modes], torch.view_as_complex(self.weight))
        whole = F.pad(low, (0, spectrum.shape[-1] - self.modes))
        return F.gelu(torch.fft.irfft(whole, n=x.shape[-1]) + self.skip(x))


class SelectiveScan(nn.Module):
    """The state space of Mamba (Gu & Dao 2023), its recurrence a Python loop."""

    def __init__(self, width: int = 4, state: int = 3) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(width, 1))
        self.conv = nn.Conv1d(width, width, 3, groups=width, padding=2)
        self.select, self.step = nn.Linear(width, 2 * state), nn.Linear(width, width)
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        write, read = self.select(x).chunk(2, dim=-1)
        step = F.softplus(self.step(x)).unsqueeze(-1)
        decay, drive = torch.exp(-step * self.log_rate.exp()), step * write.unsqueeze(2) * x.unsqueeze(-1)
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append((h * read[:, t].unsqueeze(1)).sum(-1))
        return torch.stack(outputs, 1) + self.skip * x


class Routed(nn.Module):
    """A mixture of experts whose experts see only the tokens sent to them: how many is known when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = torch.topk(torch.softmax(self.gate(x), -1), 2)
        weight = weight / weight.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            result = result.index_add(0, token, expert(x[token]) * weight[token, place].unsqueeze(1))
        return result


class Mapped(nn.Module):
    """torch.vmap over a layer and over the indices of a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(4)
        mask = torch.vmap(lambda i: torch.vmap(lambda j: i >= j)(steps))(steps)
        return torch.vmap(self.fc)(x) @ mask.to(x.dtype)


def edges(*pairs: tuple[int, int]) -> Make:
    """The edges of a graph, each from one node to another."""
    return lambda generator, dtype: torch.tensor(pairs)


GRAPH = edges((0, 1), (2, 1), (1, 0), (3, 2), (0, 2), (0, 1), (3, 3))

LAYERS = catalogue(
    Case("scattered_attention", Scattered, draw(normal(4, 4), GRAPH), squared_error, NUMBERS, dynamic_batch=False),
    Case(
        "packed_lstm",
        Packed,
        draw(normal(3, 6, 4)),
        squared_error,
        NUMBERS,
        dynamic_batch=False,
        exported=False,
    ),
    Case("masked_gru", Masked, draw(normal(3, 4, 4), tokens(5, 3)), squared_error, NUMBERS),
    *(
        Case(f"stacked_{kind.__name__.lower()}", partial(Stacked, kind), draw(normal(2, 4, 4)), squared_error, NUMBERS)
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    ),
    Case("stacked_dropout", partial(Stacked, nn.GRU, 0.5), draw(normal(2, 4, 4)), squared_error, NUMBERS, random=True),
    Case("diffusion_unet", DiffusionUNet, draw(normal(2, 2, 4, 4), tokens(50, 2)), squared_error, NUMBERS),
    Case("attention", Attending, draw(normal(2, 3, 6), normal(2, 4, 4), normal(2, 4, 5)), squared_error, NUMBERS),
    Case("translator", Translator, draw(normal(2, 4, 8), normal(2, 3, 8)), squared_error, NUMBERS),
    Case(
        "weight_norm_parametrised", partial(parametrised, "weight_norm"), draw(normal(2, 3, 5)), squared_error, NUMBERS
    ),
    Case("weight_norm_hooked", partial(hooked, "weight_norm"), draw(normal(2, 3, 5)), squared_error, NUMBERS),
    Case("spectral_norm_hooked", partial(hooked, "spectral_norm"), draw(normal(2, 3, 5)), squared_error, NUMBERS),
    Case("quantised", Quantised, draw(normal(3, 4)), squared_error, NUMBERS),
    Case("spatial_transformer", SpatialTransformer, draw(normal(2, 2, 5, 5)), squared_error, NUMBERS),
    Case("fourier_layer", FourierLayer, draw(normal(2, 2, 8)), squared_error, NUMBERS),
    Case("selective_scan", SelectiveScan, draw(normal(2, 5, 4)), squared_error, NUMBERS),
    Case("routed_experts", Routed, draw(normal(7, 4)), squared_error, NUMBERS),
    Case("vmap", Mapped, draw(normal(2, 3)), squared_error, NUMBERS),
)
