"""Attention and rotary position embedding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import DTYPES


@operator("Attention")
def attention(
    node: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Any:
    """Scaled dot-product attention with grouped heads, a cache, masks, a soft cap; its cache and scores where read."""
    flat = q.dim() == 3
    if flat:
        q = heads(q, node.get("q_num_heads"))
        k, v = heads(k, node.get("kv_num_heads")), heads(v, node.get("kv_num_heads"))
    past = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    present_key, present_value = k, v
    window = (node.get("left_window_size", -1), node.get("right_window_size", -1))
    simple = not (node.get("softcap", 0.0) or node.wants(3) or "softmax_precision" in node.attributes)
    simple = simple and window == (-1, -1)
    causal = bool(node.get("is_causal", 0))
    scale = node.get("scale")
    if simple and lengths is None and not (causal and (past_key is not None or mask is not None)):
        if mask is not None:
            mask = widened(mask, k.shape[2])
        grouped = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
        scores = y
    else:
        y, scores = written_out(node, q, k, v, total_mask(q, k, mask, causal, past, lengths, window), scale)
    y = y.transpose(1, 2).flatten(2) if flat else y
    return y, present_key, present_value, scores


def heads(x: Tensor, count: int) -> Tensor:
    """`[batch, time, heads × size]` as `[batch, heads, time, size]`."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def widened(mask: Tensor, length: Any) -> Tensor:
    """A mask over the first keys, the rest of them shut out."""
    missing = length - mask.shape[-1]
    if isinstance(missing, int) and missing == 0:
        return mask
    return F.pad(mask, [0, missing], value=False if mask.dtype is torch.bool else float("-inf"))


def total_mask(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    causal: bool,
    past: Any,
    lengths: Tensor | None,
    window: tuple[int, int],
) -> Tensor | None:
    """All masks as one that is added to the scores, or nothing."""
    total: Tensor | None = None
    if mask is not None:
        mask = widened(mask, k.shape[2])
        total = shutting(~mask, q.dtype) if mask.dtype is torch.bool else mask
    keys = torch.arange(k.shape[2])
    shut: list[Tensor] = []
    if lengths is not None:
        shut.append((keys[None, :] >= lengths[:, None])[:, None, None, :])
    first = past if lengths is None else (lengths - q.shape[2])[:, None, None, None]
    queries = torch.arange(q.shape[2])[:, None] + first
    before, after = window
    if causal:
        shut.append(keys > queries)
    if before >= 0:
        shut.append(keys < queries - before)
    if after >= 0:
        shut.append(keys > queries + after)
    for closed in shut:
        bias = shutting(closed, q.dtype)
        total = bias if total is None else total + bias
    return total


def shutting(closed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias that shuts out what is `closed`."""
    return torch.zeros(closed.shape, dtype=dtype).masked_fill(closed, float("-inf"))


def written_out(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The result and the scores at the stage that `qk_matmul_output_mode` names."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    root = math.sqrt(scale if scale is not None else 1.0 / math.sqrt(q.shape[-1]))
    products = (q * root) @ (k * root).transpose(-1, -2)
    cap = node.get("softcap", 0.0)
    capped = cap * torch.tanh(products / cap) if cap else products
    final = capped if mask is None else capped + mask
    precision = DTYPES.get(node.get("softmax_precision", 0), q.dtype)
    weights = torch.softmax(final.to(precision), -1).to(q.dtype)
    # a query whose keys are all masked attends to nothing
    weights = torch.where(torch.isneginf(final).all(-1, keepdim=True), torch.zeros_like(weights), weights)
    return weights @ v, (products, capped, final, weights)[node.get("qk_matmul_output_mode", 0)]


@operator("RotaryEmbedding")
def rotary_embedding(node: Node, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """x with pairs of features turned by angles that grow with position."""
    flat = x.dim() == 3
    x = x.reshape(x.shape[0], x.shape[1], node.get("num_heads"), -1) if flat else x.transpose(1, 2)
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    result = rotated(x, cos, sin, bool(node.get("interleaved", 0)))
    return result.flatten(2) if flat else result.transpose(1, 2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x `[batch, time, heads, size]`, its first features turned in pairs by angles `[batch, time, pairs]`."""
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    width = 2 * cos.shape[-1]
    turning, still = x[..., :width], x[..., width:]
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turning.chunk(2, -1)
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    return torch.cat([turned, still], -1) if width != x.shape[-1] else turned
