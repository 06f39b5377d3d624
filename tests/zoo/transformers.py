"""Transformers: GPT-2 (two ways to attend), Llama, encoders and ViT."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import NUMBERS, Case, bits, catalogue, draw, normal, squared_error, token_loss, tokens


class CausalSelfAttention(nn.Module):
    """Attention written out with a mask buffer, or by scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, context: int, dropout: float, fused: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.fused = heads, dropout, fused
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)
        self.register_buffer("bias", torch.tril(torch.ones(context, context)).view(1, 1, context, context))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.size()
        q, k, v = self.c_attn(x).split(width, dim=2)
        q = q.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        k = k.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        v = v.view(batch, time, self.heads, width // self.heads).transpose(1, 2)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :time, :time] == 0, float("-inf"))
            att = self.attn_dropout(F.softmax(att, dim=-1))
            y = att @ v
        y = y.transpose(1, 2).contiguous().view(batch, time, width)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, context: int, dropout: float, fused: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads, context, dropout, fused)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """GPT-2 with the output matrix tied to the embedding."""

    def __init__(self, dropout: float = 0.1, fused: bool = False, words: int = 29, layers: int = 2) -> None:
        super().__init__()
        width, heads, context = 24, 3, 12
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(words, width),
                "wpe": nn.Embedding(context, width),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList([Block(width, heads, context, dropout, fused) for _ in range(layers)]),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, words: Tensor) -> Tensor:
        position = torch.arange(0, words.size(1), dtype=torch.long, device=words.device)
        x = self.transformer.drop(self.transformer.wte(words) + self.transformer.wpe(position))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class LlamaLayer(nn.Module):
    """Rotary positions, two query heads to a key head, RMS norm and a gated feed-forward layer."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head = heads, key_heads, width // heads
        self.input_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, heads * self.head, bias=False)
        self.k_proj = nn.Linear(width, key_heads * self.head, bias=False)
        self.v_proj = nn.Linear(width, key_heads * self.head, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-6)
        self.gate_proj = nn.Linear(width, 2 * width, bias=False)
        self.up_proj = nn.Linear(width, 2 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, time, width = x.shape
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(batch, time, self.heads, self.head).transpose(1, 2)
        k = self.k_proj(h).view(batch, time, self.key_heads, self.head).transpose(1, 2)
        v = self.v_proj(h).view(batch, time, self.key_heads, self.head).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k = k.repeat_interleave(self.heads // self.key_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.key_heads, dim=1)
        att = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.head) + mask, dim=-1)
        x = x + self.o_proj((att @ v).transpose(1, 2).reshape(batch, time, width))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nn.Module):
    def __init__(self, words: int = 17, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width)
        self.layers = nn.ModuleList([LlamaLayer(width, 4, 2) for _ in range(layers)])
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.register_buffer("inv_freq", 100.0 ** -(torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed_tokens(words)
        time = words.shape[1]
        angles = torch.outer(torch.arange(time, dtype=x.dtype, device=x.device), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        mask = torch.triu(torch.full((time, time), float("-inf"), dtype=x.dtype, device=x.device), diagonal=1)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin(), mask)
        return self.lm_head(self.norm(x))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        att = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(dim=-1)
        x = x + self.proj((att @ v).transpose(1, 2).reshape(batch, time, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """The encoder of the benchmarks: two layers, width 128, 64 tokens, no dropout."""

    def __init__(self, words: int = 100, width: int = 128, time: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, time, width))
        self.layers = nn.ModuleList([EncoderLayer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


class TorchEncoder(nn.Module):
    """nn.TransformerEncoder with post-norm and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, dim_feedforward=20, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        padding = torch.cat([torch.zeros_like(padding[:, :1]), padding[:, 1:]], dim=1)  # no sequence is all padding
        return self.encoder(x, src_key_padding_mask=padding)


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        h, _ = self.self_attention(h, h, h, need_weights=False)
        x = h + x
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    """ViT: patches by a strided convolution, a class token and learned positions."""

    def __init__(self, width: int = 16, patch: int = 4, patches: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, patches + 1, width))
        self.layers = nn.Sequential(*[EncoderBlock(width, 4, 24) for _ in range(2)])
        self.ln = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.ln(self.layers(x + self.pos_embedding))
        return self.heads(x[:, 0])


text, following = draw(tokens(29, 3, 10)), tokens(29, 3, 10)

TRANSFORMERS = catalogue(
    Case("gpt2", GPT2, text, token_loss, following, random=True),
    Case("gpt2_no_dropout", partial(GPT2, dropout=0.0), text, token_loss, following),
    Case("gpt2_sdpa", partial(GPT2, dropout=0.0, fused=True), text, token_loss, following),
    Case("llama", Llama, draw(tokens(17, 3, 7)), token_loss, tokens(17, 3, 7)),
    Case("encoder", Encoder, draw(tokens(100, 8, 64)), F.cross_entropy, tokens(10, 8)),
    Case("torch_encoder", TorchEncoder, draw(normal(3, 5, 12), bits(3, 5)), squared_error, NUMBERS),
    Case("vit", ViT, draw(normal(2, 3, 12, 16)), F.cross_entropy, tokens(10, 2)),
)
