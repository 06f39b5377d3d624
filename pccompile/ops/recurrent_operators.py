"""torch's recurrent operators as operators of one call, whose result's shape is told by a rule.

torch tells their shapes by running every step, which takes longer the longer the sequence is, and only for lengths that
are numbers. A model is captured with these instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OPTIONS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)


def _states(input: Tensor, width: Any, bidirectional: bool, batch_first: bool) -> Tensor:
    """States of the last layer, as torch lays them out: step after step, whichever dimension comes first."""
    steps, batch = input.shape[:2] if not batch_first else (input.shape[1], input.shape[0])
    states = input.new_empty([steps, batch, width * (2 if bidirectional else 1)])
    return states.transpose(0, 1) if batch_first else states


def _two_states(input: Tensor, hx: list[Tensor], params: Any, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    h, c = hx
    return _states(input, h.shape[2], *options[-2:]), torch.empty_like(h), torch.empty_like(c)


def _one_state(input: Tensor, hx: Tensor, params: Any, *options: Any) -> tuple[Tensor, Tensor]:
    return _states(input, hx.shape[2], *options[-2:]), torch.empty_like(hx)


def _operator(name: str) -> Any:
    """torch's function as an operator: the states of the last layer at all steps, and the last ones of all layers."""
    cell = name == "lstm"
    state, results = ("Tensor[]", "Tensor, Tensor, Tensor") if cell else ("Tensor", "Tensor, Tensor")
    schema = f"(Tensor input, {state} hx, {OPTIONS}) -> ({results})"
    operator = torch.library.custom_op(f"pccompile::{name}", getattr(torch, name), mutates_args=(), schema=schema)
    operator.register_fake(_two_states if cell else _one_state)
    return operator


OPERATORS = {name: _operator(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
"""By the name of torch's own function."""
NAMES = {f"pccompile.{name}.default": f"aten.{name}.input" for name in OPERATORS}
"""torch's own operator for each of them."""
