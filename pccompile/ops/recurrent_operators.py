"""torch's recurrent operators as operators of one call, whose result's shape is told by a rule.

torch tells their shapes by running every step, which takes longer the longer the sequence is, and only for lengths that
are numbers. A model is captured with these instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("pccompile::lstm", mutates_args=())
def lstm(
    input: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """torch.lstm: the states of the last layer at all steps, the last states and the last cells of all layers."""
    return torch.lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


@torch.library.custom_op("pccompile::gru", mutates_args=())
def gru(
    input: Tensor, hx: Tensor, params: list[Tensor], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch.gru: the states of the last layer at all steps, and the last states of all layers."""
    return torch.gru(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


@torch.library.custom_op("pccompile::rnn_tanh", mutates_args=())
def rnn_tanh(
    input: Tensor, hx: Tensor, params: list[Tensor], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch.rnn_tanh: the states of the last layer at all steps, and the last states of all layers."""
    return torch.rnn_tanh(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


@torch.library.custom_op("pccompile::rnn_relu", mutates_args=())
def rnn_relu(
    input: Tensor, hx: Tensor, params: list[Tensor], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch.rnn_relu: the states of the last layer at all steps, and the last states of all layers."""
    return torch.rnn_relu(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _states(input: Tensor, width: Any, bidirectional: bool, batch_first: bool) -> Tensor:
    """States of the last layer, as torch lays them out: step after step, whichever dimension comes first."""
    steps, batch = input.shape[:2] if not batch_first else (input.shape[1], input.shape[0])
    states = input.new_empty([steps, batch, width * (2 if bidirectional else 1)])
    return states.transpose(0, 1) if batch_first else states


@lstm.register_fake
def _(input: Tensor, hx: list[Tensor], params: Any, *options: Any) -> Any:
    h, c = hx
    return _states(input, h.shape[2], *options[-2:]), torch.empty_like(h), torch.empty_like(c)


def _one_state(input: Tensor, hx: Tensor, params: Any, *options: Any) -> Any:
    return _states(input, hx.shape[2], *options[-2:]), torch.empty_like(hx)


for _operator in (gru, rnn_tanh, rnn_relu):
    _operator.register_fake(_one_state)

OPERATORS = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}
"""By the name of torch's own function."""
NAMES = {f"pccompile.{name}.default": f"aten.{name}.input" for name in OPERATORS}
"""torch's own operator for each of them."""
