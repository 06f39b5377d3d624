"""Recurrent layers: LSTM, GRU and RNN in all their variants.

A plain layer becomes torch's own, one operation for the whole sequence. The rest (clipping, peepholes, unusual
activations, sequence lengths) is written out step by step. Weights may be computed: gradients reach them either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx.registry import Node, operator
from pccompile.limits import spend

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

TORCH_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where torch's gates (input, forget, cell, output; reset, update, new) lie among ONNX's."""

DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


def activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """The function that an `activations` entry names."""
    a = 1.0 if alpha is None else alpha
    table: dict[str, Activation] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: a * x + (0.0 if beta is None else beta),
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01 if alpha is None else alpha),
        "thresholdedrelu": lambda x: F.threshold(x, a, 0.0),
        "scaledtanh": lambda x: a * torch.tanh((1.0 if beta is None else beta) * x),
        "hardsigmoid": lambda x: torch.clamp(
            (0.2 if alpha is None else alpha) * x + (0.5 if beta is None else beta), 0, 1
        ),
        "elu": lambda x: F.elu(x, a),
    }
    if name.lower() not in table:
        raise CompileError(f"no recurrent activation called {name}")
    return table[name.lower()]


def activations(node: Node, direction: int) -> tuple[tuple[str, ...], list[Activation]]:
    """The names and functions of one direction's activations; alphas and betas go to those that take them, in order."""
    defaults = DEFAULTS[node.op_type]
    names = [n.lower() for n in node.get("activations") or ()] or list(defaults) * 2
    alphas, betas = list(node.get("activation_alpha") or ()), list(node.get("activation_beta") or ())
    takes_alpha = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
    takes_beta = ("affine", "scaledtanh", "hardsigmoid")
    functions = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name in takes_alpha else None
        beta = betas.pop(0) if betas and name in takes_beta else None
        functions.append(activation(name, alpha, beta))
    chosen = slice(direction * len(defaults), (direction + 1) * len(defaults))
    return tuple(names[chosen]), functions[chosen]


def lstm_step(node: Node, f: list[Activation], w: Tensor, r: Tensor, bias: Tensor, peephole: Tensor | None) -> Step:
    """One time step of an LSTM: gates in the order input, output, forget, cell."""
    clip = clipper(node)
    input_peep, output_peep, forget_peep = (0.0, 0.0, 0.0) if peephole is None else peephole.chunk(3)
    input_bias, recurrent_bias = bias.chunk(2)

    def step(x: Tensor, state: State) -> State:
        h, c = state
        gates = F.linear(x, w, input_bias) + F.linear(h, r, recurrent_bias)
        i, o, g, n = gates.chunk(4, -1)
        i = f[0](clip(i + input_peep * c))
        keep = 1 - i if node.get("input_forget", 0) else f[0](clip(g + forget_peep * c))
        c = keep * c + i * f[1](clip(n))
        return f[0](clip(o + output_peep * c)) * f[2](c), c

    return step


def gru_step(node: Node, f: list[Activation], w: Tensor, r: Tensor, bias: Tensor, peephole: Tensor | None) -> Step:
    """One time step of a GRU: gates in the order update, reset, hidden."""
    clip = clipper(node)
    input_bias, recurrent_bias = bias.chunk(2)
    r_gates, r_hidden = r.split([2 * r.shape[-1], r.shape[-1]])
    b_gates, b_hidden = recurrent_bias.split([2 * r.shape[-1], r.shape[-1]])

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        from_input = F.linear(x, w, input_bias)
        update_in, reset_in, hidden_in = from_input.chunk(3, -1)
        update_rec, reset_rec = F.linear(h, r_gates, b_gates).chunk(2, -1)
        z, reset = f[0](clip(update_in + update_rec)), f[0](clip(reset_in + reset_rec))
        if node.get("linear_before_reset", 0):
            recurrent = reset * F.linear(h, r_hidden, b_hidden)
        else:
            recurrent = F.linear(reset * h, r_hidden, b_hidden)
        candidate = f[1](clip(hidden_in + recurrent))
        return ((1 - z) * candidate + z * h,)

    return step


def rnn_step(node: Node, f: list[Activation], w: Tensor, r: Tensor, bias: Tensor, peephole: Tensor | None) -> Step:
    """One time step of a simple recurrent layer."""
    clip = clipper(node)
    input_bias, recurrent_bias = bias.chunk(2)
    return lambda x, state: (f[0](clip(F.linear(x, w, input_bias) + F.linear(state[0], r, recurrent_bias))),)


STEPS: dict[str, Callable[..., Step]] = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}


def clipper(node: Node) -> Activation:
    """What limits the inputs of the activations."""
    limit = node.get("clip")
    return (lambda x: torch.clamp(x, -limit, limit)) if limit else (lambda x: x)


def unroll(step: Step, x: Tensor, state: State, lengths: Tensor | None, backwards: bool) -> tuple[Tensor, State]:
    """Outputs `[time, batch, hidden]` and the last state; samples past their length keep their state and yield zero."""
    count = int(x.shape[0])
    spend("steps", 5 * count, "a recurrent layer, step by step,")
    outputs: list[Tensor] = [x] * count
    for time in range(count - 1, -1, -1) if backwards else range(count):
        after = step(x[time], state)
        if lengths is None:
            state, outputs[time] = after, after[0]
        else:
            alive = (lengths > time)[:, None]
            state = tuple(torch.where(alive, new, old) for new, old in zip(after, state, strict=True))
            outputs[time] = torch.where(alive, after[0], torch.zeros_like(after[0]))
    return torch.stack(outputs), state


def plain(node: Node, peephole: Tensor | None, names: tuple[str, ...]) -> str:
    """The torch layer that does the same, or nothing."""
    special = node.get("clip") or node.get("input_forget", 0) or peephole is not None
    if special or (node.op_type == "GRU" and not node.get("linear_before_reset", 0)):
        return ""
    if node.op_type == "RNN":
        return {"tanh": "rnn_tanh", "relu": "rnn_relu"}.get(names[0], "")
    return node.op_type.lower() if names == DEFAULTS[node.op_type] else ""


def torch_layer(
    node: Node, layer: str, x: Tensor, state: State, w: Tensor, r: Tensor, b: Tensor | None
) -> tuple[Tensor, State]:
    """One direction by torch's own layer, its gates put in torch's order."""
    order = TORCH_GATES[node.op_type]

    def gates(weight: Tensor) -> Tensor:
        parts = weight.chunk(len(order))
        return weight if len(order) == 1 else torch.cat([parts[i] for i in order])

    flat = [gates(w), gates(r), *([] if b is None else map(gates, b.chunk(2)))]
    first: Any = tuple(s.unsqueeze(0) for s in state)
    options = (flat, b is not None, 1, 0.0, False, False, False)
    if layer == "lstm":
        y, h, c = torch.lstm(x, first, *options)
        return y, (h[0], c[0])
    y, h = getattr(torch, layer)(x, first[0], *options)
    return y, (h[0],)


def torch_layer_with_lengths(
    node: Node,
    layer: str,
    x: Tensor,
    state: State,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor,
    backwards: bool,
) -> tuple[Tensor, State]:
    """The same for samples of different lengths; the last cell state is left at its start."""
    lengths = lengths.to(torch.int64)
    steps = torch.arange(x.shape[0])[:, None]
    alive = steps < lengths
    mirrored = torch.where(alive, lengths - 1 - steps, steps)[:, :, None]
    source = x.gather(0, mirrored.expand(x.shape)) if backwards else x
    y, _ = torch_layer(node, layer, source, state, w, r, b)
    end = (lengths - 1).clamp(min=0)[None, :, None].expand(1, *y.shape[1:])
    last = torch.where(lengths[:, None] > 0, y.gather(0, end)[0], state[0])
    y = torch.where(alive[:, :, None], y, torch.zeros_like(y))
    return y.gather(0, mirrored.expand(y.shape)) if backwards else y, (last, *state[1:])


def run(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    states: State,
    peephole: Tensor | None,
) -> tuple[Tensor, State]:
    """Outputs `[time, directions, batch, hidden]` and the last states `[directions, batch, hidden]`."""
    direction = node.get("direction", "forward")
    outputs, lasts = [], []
    for d in range(2 if direction == "bidirectional" else 1):
        backwards = direction == "reverse" or d == 1
        names, functions = activations(node, d)
        state = tuple(s[d] for s in states)
        bias, peep = (None if b is None else b[d]), (None if peephole is None else peephole[d])
        layer = plain(node, peep, names)
        if layer and lengths is not None and not (node.op_type == "LSTM" and node.wants(2)):
            y, last = torch_layer_with_lengths(node, layer, x, state, w[d], r[d], bias, lengths, backwards)
        elif layer and lengths is None:
            y, last = torch_layer(node, layer, x.flip(0) if backwards else x, state, w[d], r[d], bias)
            y = y.flip(0) if backwards else y
        else:
            full = torch.zeros(2 * w.shape[1], dtype=x.dtype) if bias is None else bias
            y, last = unroll(STEPS[node.op_type](node, functions, w[d], r[d], full, peep), x, state, lengths, backwards)
        outputs.append(y)
        lasts.append(last)
    return torch.stack(outputs, 1), tuple(torch.stack(s) for s in zip(*lasts, strict=True))


@operator("LSTM", "GRU", "RNN", weights=(1, 2, 3, 7))
def recurrent(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peephole: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """All outputs, the last hidden state, and for an LSTM the last cell state, in the layout asked for."""
    batch_first = bool(node.get("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    zero = torch.zeros([w.shape[0], x.shape[1], r.shape[-1]], dtype=x.dtype)
    states = tuple(
        zero if start is None else start.transpose(0, 1) if batch_first else start
        for start in ((h, c) if node.op_type == "LSTM" else (h,))
    )
    y, last = run(node, x, w, r, b, lengths, states, peephole)
    if batch_first:
        return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))
    return (y, *last)
