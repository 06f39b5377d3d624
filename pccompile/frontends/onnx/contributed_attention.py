"""Attention as `com.microsoft` has it: what onnxruntime's transformer optimiser and model builder write."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.attention import heads, rotated, shutting
from pccompile.frontends.onnx.contributed import MICROSOFT
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.frontends.onnx.values import Host


@operator("Attention", domain=MICROSOFT, weights=(1, 2))
def attention(
    node: Node,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    shift: Tensor | None = None,
    past_length: Tensor | None = None,
) -> Any:
    """Self-attention from one joint projection of x `[batch, time, features]`, and its keys and values where read."""
    refuse(node, "do_rotary", "past_present_share_buffer")
    joint = torch.matmul(x, weight)
    joint = joint if bias is None else joint + bias
    sizes = node.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    q, k, v = (heads(part, node.get("num_heads")) for part in joint.split(sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = attended(node, q, k, v, mask, shift)
    return (y, torch.stack([k, v])) if node.wants(1) else y


@operator("MultiHeadAttention", domain=MICROSOFT, weights=(3,))
def multi_head_attention(
    node: Node,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    shift: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> Any:
    """Attention of projected queries, keys and values, alone or packed; its keys and values where they are read."""
    count = node.get("num_heads")
    query, key, value = unpacked(query, key, value)
    width = query.shape[-1]
    parts = (0, 0, 0) if bias is None else bias.split([width, width, bias.shape[0] - 2 * width])
    q = heads(query + parts[0], count)
    k = heads(key + parts[1], count) if key.dim() == 3 else key
    v = heads(value + parts[2], count) if value.dim() == 3 else value
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    y = attended(node, q, k, v, mask, shift)
    return (y, k, v) if node.wants(1) or node.wants(2) else y


def unpacked(query: Tensor, key: Tensor | None, value: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each `[batch, time, features]`, or keys and values `[batch, heads, time, size]`."""
    if query.dim() == 5:  # [batch, time, heads, 3, size]
        q, k, v = (part.flatten(2) for part in query.unbind(3))
        return q, k, v
    if key is not None and key.dim() == 5:  # [batch, time, heads, 2, size]
        k, v = (part.flatten(2) for part in key.unbind(3))
        return query, k, v
    if key is None or value is None:
        raise CompileError("MultiHeadAttention has neither packed queries nor keys and values")
    return query, key, value


def attended(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, shift: Tensor | None) -> Tensor:
    """Values `[batch, heads, time, size]` weighted by the softmax of scaled scores, as `[batch, time, features]`."""
    filled = node.get("mask_filter_value", -10000.0)
    total = shift
    for closed in (
        None if mask is None else masked(mask, q, k),
        future(q, k) if node.get("unidirectional", 0) else None,
    ):
        if closed is not None:
            barrier = torch.where(closed, filled, torch.zeros((), dtype=q.dtype))
            total = barrier if total is None else total + barrier
    y = F.scaled_dot_product_attention(q, k, v, total, scale=node.get("scale") or None)
    return y.transpose(1, 2).flatten(2)


def masked(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Which scores `[batch, heads, time, keys]` a mask of one of its forms shuts out."""
    batch, count = q.shape[0], k.shape[2]
    places = torch.arange(count)
    if mask.dim() == 1:
        closed = places >= mask[:batch, None]  # where each sample ends
        if mask.shape[0] != batch:
            if mask.shape[0] != 2 * batch:
                raise CompileError("masks of cumulated lengths are not supported", hint="give the mask as 0 and 1")
            closed = closed | (places < mask[batch:, None])
        return closed[:, None, None, :]
    if mask.dim() == 2:
        return (mask <= 0)[:, None, None, :]
    if mask.dim() == 3:
        return (mask <= 0)[:, None]
    past = count - q.shape[2]
    return mask[:, :, past:count, :count] <= 0


def future(q: Tensor, k: Tensor) -> Tensor:
    """Which keys lie behind each query, the queries being the last ones."""
    past = k.shape[2] - q.shape[2]
    return torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None] + past


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(node: Node, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with pairs of features turned by angles that grow with position."""
    refuse(node, "is_packed_batching")
    flat = x.dim() == 3
    count = node.get("num_heads", 0) or x.shape[-1] // (2 * cos.shape[1])
    split = x.reshape(x.shape[0], x.shape[1], count, -1) if flat else x.transpose(1, 2)
    if positions.dim() == 1:
        positions = positions + torch.arange(split.shape[1])
        positions = positions.expand(split.shape[0], split.shape[1])
    result = rotated(split, cos[positions], sin[positions], bool(node.get("interleaved", 0)))
    return result.flatten(2) if flat else result.transpose(1, 2)


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(
    node: Node,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: Host,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    shift: Tensor | None = None,
) -> Any:
    """Causal attention in which several queries share keys; its cache of keys and values where it is read.

    `last` is the place of each sample's last token, `total` the length of the longest sample.
    """
    refuse(node, "smooth_softmax", "qk_output", "k_quant_type", "v_quant_type")
    count, groups = node.get("num_heads"), node.get("kv_num_heads")
    if key is None or value is None:
        size = query.shape[-1] // (count + 2 * groups)
        query, key, value = query.split([count * size, groups * size, groups * size], -1)
    length = query.shape[1]
    longest = total.item()
    prompt = isinstance(length, int) and length == longest
    start = torch.zeros_like(last) if prompt else last + 1 - length
    start = start.reshape(-1).to(torch.int64)
    places = start[:, None] + torch.arange(length) if positions is None else positions
    q, k = (x.reshape(x.shape[0], length, n, -1) for x, n in ((query, count), (key, groups)))
    if node.get("do_rotary", 0):
        if cos is None or sin is None:
            raise CompileError("GroupQueryAttention turns its inputs, but has no angles")
        turn = bool(node.get("rotary_interleaved", 0))
        q, k = (rotated(x, cos[places], sin[places], turn) for x in (q, k))
    k, v = k.transpose(1, 2), heads(value, groups)
    k, v = cached(k, past_key, start, longest), cached(v, past_value, start, longest)
    y = grouped(node, q.transpose(1, 2), k, v, start, shift)
    return (y, k, v) if node.wants(1) or node.wants(2) else y


def cached(new: Tensor, past: Tensor | None, start: Tensor, total: int) -> Tensor:
    """The cache `[batch, heads, places, size]` with `new` written from `start` on, and zeros behind it."""
    if past is None or past.shape[2] == 0:
        return new
    if past.shape[2] < total:
        past = F.pad(past, [0, 0, 0, total - past.shape[2]])
    index = (start[:, None] + torch.arange(new.shape[2]))[:, None, :, None].expand(new.shape)
    filled = torch.arange(past.shape[2]) < start[:, None] + new.shape[2]
    return torch.where(filled[:, None, :, None], torch.scatter(past, 2, index, new), 0.0)


def grouped(node: Node, q: Tensor, k: Tensor, v: Tensor, start: Tensor, shift: Tensor | None) -> Tensor:
    """The values weighted by the softmax of scaled scores of the keys up to each query's own place."""
    own = start[:, None] + torch.arange(q.shape[2])  # [batch, time]
    places = torch.arange(k.shape[2])
    closed = places > own[:, :, None]
    window = node.get("local_window_size", -1)
    if window > 0:
        closed = closed | (places <= own[:, :, None] - window)
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = torch.matmul(q, k.transpose(-1, -2)) * (node.get("scale") or q.shape[-1] ** -0.5)
    cap = node.get("softcap", 0.0)
    scores = cap * torch.tanh(scores / cap) if cap else scores
    scores = scores + shutting(closed, q.dtype)[:, None]
    scores = scores if shift is None else scores + shift
    return torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).flatten(2)


def refuse(node: Node, *attributes: str) -> None:
    """Raise CompileError where the node asks for something that has no rule."""
    asked = [a for a in attributes if node.get(a, 0) not in (0, "NONE", "")]
    if asked:
        raise CompileError(f"{node.op_type} with {', '.join(asked)} has no rule")
