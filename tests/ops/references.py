"""What operations that torch does not have, or not with a derivative, are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _lstm(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> tuple[Any, ...]:
    *weights, reverse = rest
    x = x.flip(0) if reverse else x
    y, _, last = torch.lstm(
        x,
        [h[None], c[None]],
        [w for w in weights if w is not None],
        weights[2] is not None,
        1,
        0.0,
        False,
        False,
        False,
    )
    return y.flip(0) if reverse else y, last[0], None, None


def _gru(x: Tensor, h: Tensor, *rest: Any) -> tuple[Any, ...]:
    *weights, reverse = rest
    x = x.flip(0) if reverse else x
    y, _ = torch.gru(
        x, h[None], [w for w in weights if w is not None], weights[2] is not None, 1, 0.0, False, False, False
    )
    return y.flip(0) if reverse else y, None


def _rnn(x: Tensor, h: Tensor, *rest: Any) -> Tensor:
    *weights, nonlinearity, reverse = rest
    x = x.flip(0) if reverse else x
    function = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    y, _ = function(
        x, h[None], [w for w in weights if w is not None], weights[2] is not None, 1, 0.0, False, False, False
    )
    return y.flip(0) if reverse else y


def _packed(x: Tensor, sizes: Tensor, first: tuple[Tensor, ...], rest: Any, run: Any) -> tuple[Tensor, Any]:
    """A packed layer of torch in one direction: for the reverse one both run, and the other is left out."""
    *weights, reverse = rest
    given = [w for w in weights if w is not None]
    twice = [w.detach() for w in given] + given if reverse else given
    states = [torch.stack([h.detach(), h]) if reverse else h[None] for h in first]
    hx = states if len(states) > 1 else states[0]
    y, *ends = run(x, sizes, hx, twice, weights[2] is not None, 1, 0.0, False, reverse)
    width = first[0].shape[1]
    return y[:, width:] if reverse else y, [e[-1] for e in ends]


def _packed_lstm(x: Tensor, sizes: Tensor, h: Tensor, c: Tensor, *rest: Any) -> tuple[Any, ...]:
    y, ends = _packed(x, sizes, (h, c), rest, torch.lstm)
    return y, ends[1], None, None, None, None


def _packed_gru(x: Tensor, sizes: Tensor, h: Tensor, *rest: Any) -> tuple[Any, ...]:
    return _packed(x, sizes, (h,), rest, torch.gru)[0], None, None


def _packed_rnn(x: Tensor, sizes: Tensor, h: Tensor, *rest: Any) -> tuple[Any, ...]:
    *weights, nonlinearity, reverse = rest
    function = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
    return _packed(x, sizes, (h,), (*weights, reverse), function)[0], None


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, n: int, c: int, hxw: int, groups: int, eps: float) -> Any:
    """torch's own derivative is wrong by the mean and the deviation."""
    grouped = x.reshape(n, groups, -1)
    mean, inverse = grouped.mean(-1), (grouped.var(-1, unbiased=False) + eps).rsqrt()
    y = ((grouped - mean[..., None]) * inverse[..., None]).reshape(n, c, hxw)
    return (y * weight[:, None] + bias[:, None]).reshape(x.shape), mean, inverse


def _as_strided(x: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
    """The offset counts the tensor's own entries, in their order."""
    return x.flatten()[offset:].as_strided(size, stride)


def _as_strided_scatter(x: Tensor, src: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
    """torch's own derivative sends an error to those entries that were written over, and to no others."""
    places = torch.arange(x.numel()).as_strided(size, stride, offset)
    return x.flatten().index_put((places.flatten(),), src.flatten()).reshape(x.shape)


REFERENCES: dict[str, Callable[..., Any]] = {
    "aten.native_group_norm.default": _group_norm,
    "aten.as_strided.default": _as_strided,
    "aten.as_strided_scatter.default": _as_strided_scatter,
    "pcc.lstm_layer": _lstm,
    "pcc.gru_layer": _gru,
    "pcc.rnn_layer": _rnn,
    "pccompile.packed_lstm.default": _packed_lstm,
    "pccompile.packed_gru.default": _packed_gru,
    "pccompile.packed_rnn.default": _packed_rnn,
    "pcc.sized": lambda x, axis, size: x,
    "pcc.on_path": lambda x, values, where: x,
    "pcc.piece": lambda x, at, dim, index, type_: torch.tensor_split(x, at, dim)[index],
    "pcc.flat": lambda value, by: by.clone().copy_(value.detach()),
    "aten.heaviside.default": lambda x, y: torch.heaviside(x.detach(), y.detach()),  # torch has no derivative
    "aten.floor_divide.default": lambda x, y: x.detach() // (y.detach() if isinstance(y, Tensor) else y),
}
"""What to compare with, where that is not the ATen operation itself."""
