"""Recurrent networks: an operation for each layer and direction loops over time, its messages are one sweep back.

The sweep yields the errors of the gates at every step; messages to the input and the weights are then one product each
over all steps together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pccompile.diagnostics import CompileError
from pccompile.ir import DEVICE, Arg, Node, Ref, TensorType, Type
from pccompile.ops import compositions
from pccompile.ops import recurrent_source as source
from pccompile.ops.builder import Builder
from pccompile.ops.packed import LAYERS
from pccompile.ops.random import dropped
from pccompile.ops.recurrent_operators import NAMES
from pccompile.ops.registry import OPS, call_of, define, normal, rewrite
from pccompile.ops.trace import decompose

WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")
TypeOf = Callable[[Ref], TensorType]


def _like(args: Mapping[str, Arg], type_of: TypeOf, hidden: int, *more: str) -> tuple[TensorType, ...]:
    """Types of a sequence with `hidden` features, and of the arguments `more`."""
    x = type_of(args["x"])
    return TensorType((*x.shape[:2], hidden), x.dtype), *(type_of(args[m]) for m in more)


def _width(args: Mapping[str, Arg], type_of: TypeOf) -> Any:
    return type_of(args["w_hh"]).shape[1]


def _rows(b: Builder, x: Ref) -> Ref:
    """All time steps of all samples as the rows of a matrix."""
    shape = b.shape(x)
    return b.view(x, (b.numel(shape[:-1]), shape[-1]))


def _before(b: Builder, states: Ref, first: Ref, reverse: bool) -> Ref:
    """The state that each step started from."""
    start = b("aten.unsqueeze.default", first, 0)
    if reverse:
        return b("aten.cat.default", (b("aten.slice.Tensor", states, 0, 1), start), 0)
    return b("aten.cat.default", (start, b("aten.slice.Tensor", states, 0, 0, -1)), 0)


def _weight_messages(b: Builder, n: Node, states: Ref, drive: Ref, recur: Ref) -> dict[str, Ref | None]:
    """Messages to the input and the weights, from the errors of each gate's part from the input and from the state."""
    messages: dict[str, Ref | None] = {}
    rows, state_rows = _rows(b, drive), _rows(b, recur)
    if n["x"] in b.wants:
        messages["x"] = b.view(b("aten.mm.default", rows, n["w_ih"]), b.shape(n["x"]))
    if n["w_ih"] in b.wants:
        messages["w_ih"] = b("aten.mm.default", b("aten.t.default", rows), _rows(b, n["x"]))
    if n["w_hh"] in b.wants:
        before = _before(b, states, n["h"], bool(n["reverse"]))
        messages["w_hh"] = b("aten.mm.default", b("aten.t.default", state_rows), _rows(b, before))
    for bias, errors in (("b_ih", rows), ("b_hh", state_rows)):
        if n[bias] in b.wants:
            messages[bias] = b.sum(errors, (0,))
    return messages


def _state_error(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> Ref:
    """The error of the states, zeros where nothing reads them."""
    assert isinstance(n.type, tuple)
    states = n.type[0]
    assert states is not None
    return errors[0] if errors[0] is not None else b.zeros(states)


def _lstm_rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    gates, cells = b.get(Ref(n.name), 2), b.get(Ref(n.name), 3)
    sweep = b("pcc.lstm_sweep", _state_error(b, n, errors), errors[1], gates, cells, n["c"], n["w_hh"], n["reverse"])
    drive = b.get(sweep, 0)
    return {"h": b.get(sweep, 1), "c": b.get(sweep, 2)} | _weight_messages(b, n, b.get(Ref(n.name), 0), drive, drive)


def _lstm_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    hidden = _width(args, type_of)
    return (*_like(args, type_of, hidden, "c"), *_like(args, type_of, 4 * hidden), *_like(args, type_of, hidden))


def _lstm_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    gates, cells = type_of(args["gates"]), type_of(args["cells"])
    state = TensorType(cells.shape[1:], cells.dtype)
    return gates, state, state


def _sequence(
    gates: int, *, cell: bool = False, bias: bool = True, reverse: bool = False
) -> Callable[[], tuple[Any, ...]]:
    """A sample: three steps of two sequences with four features, five hidden units."""

    def make() -> tuple[Any, ...]:
        biases = (normal(5 * gates), normal(5 * gates)) if bias else (None, None)
        return (
            normal(3, 2, 4),
            normal(2, 5),
            *((normal(2, 5),) if cell else ()),
            normal(5 * gates, 4),
            normal(5 * gates, 5),
            *biases,
            reverse,
        )

    return make


define(
    "pcc.lstm_layer",
    "composite",
    _lstm_rule,
    recurrent=True,
    compose=compositions.lstm_layer,
    spell=call_of("lstm_layer"),
    equation="LSTM(x)",
    parameters=("x", "h", "c", *WEIGHTS, "reverse"),
    infer=_lstm_type,
    helper=source.LSTM,
    samples=(_sequence(4, cell=True), _sequence(4, cell=True, bias=False, reverse=True)),
)
define(
    "pcc.lstm_sweep",
    "composite",
    spell=call_of("lstm_sweep"),
    parameters=("err", "cell_err", "gates", "cells", "c", "w_hh", "reverse"),
    infer=_lstm_sweep_type,
    helper=source.LSTM_SWEEP,
)


def _gru_rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    states, gates = b.get(Ref(n.name), 0), b.get(Ref(n.name), 1)
    sweep = b("pcc.gru_sweep", _state_error(b, n, errors), gates, states, n["h"], n["w_hh"], n["reverse"])
    return {"h": b.get(sweep, 2)} | _weight_messages(b, n, states, b.get(sweep, 0), b.get(sweep, 1))


def _gru_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    hidden = _width(args, type_of)
    return (*_like(args, type_of, hidden), *_like(args, type_of, 4 * hidden))


def _gru_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    states, state = type_of(args["states"]), type_of(args["h"])
    gates = TensorType((*states.shape[:2], 3 * states.shape[2]), states.dtype)
    return gates, gates, state


define(
    "pcc.gru_layer",
    "composite",
    _gru_rule,
    recurrent=True,
    compose=compositions.gru_layer,
    spell=call_of("gru_layer"),
    equation="GRU(x)",
    parameters=("x", "h", *WEIGHTS, "reverse"),
    infer=_gru_type,
    helper=source.GRU,
    samples=(_sequence(3), _sequence(3, bias=False, reverse=True)),
)
define(
    "pcc.gru_sweep",
    "composite",
    spell=call_of("gru_sweep"),
    parameters=("err", "gates", "states", "h", "w_hh", "reverse"),
    infer=_gru_sweep_type,
    helper=source.GRU_SWEEP,
)


def _rnn_rule(b: Builder, n: Node, err: Ref) -> dict[str, Ref | None]:
    sweep = b("pcc.rnn_sweep", err, Ref(n.name), n["w_hh"], n["nonlinearity"], n["reverse"])
    drive = b.get(sweep, 0)
    return {"h": b.get(sweep, 1)} | _weight_messages(b, n, Ref(n.name), drive, drive)


def _rnn_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    return _like(args, type_of, _width(args, type_of))[0]


def _rnn_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    states = type_of(args["states"])
    return states, TensorType(states.shape[1:], states.dtype)


define(
    "pcc.rnn_layer",
    "composite",
    _rnn_rule,
    recurrent=True,
    compose=compositions.rnn_layer,
    spell=call_of("rnn_layer"),
    equation="RNN(x)",
    parameters=("x", "h", *WEIGHTS, "nonlinearity", "reverse"),
    infer=_rnn_type,
    helper=source.RNN,
    samples=(
        lambda: (*_sequence(1)()[:-1], "tanh", False),
        lambda: (*_sequence(1, bias=False)()[:-1], "relu", True),
    ),
)
define(
    "pcc.rnn_sweep",
    "composite",
    spell=call_of("rnn_sweep"),
    parameters=("err", "states", "w_hh", "nonlinearity", "reverse"),
    infer=_rnn_sweep_type,
    helper=source.RNN_SWEEP,
)


class _Stack:
    """Writes a recurrent operator of torch as its layers and directions. Weights come in torch's own order.

    kind: "lstm", "gru" or "rnn". extra: what a layer takes besides. projects: whether states are projected (LSTMP).
    """

    def __init__(self, b: Builder, n: Node, kind: str, extra: tuple[str, ...]) -> None:
        self.b, self.n, self.kind, self.extra = b, n, kind, extra
        hx: Any = n["hx"]
        self.first: tuple[Ref, ...] = hx if isinstance(hx, tuple) else (hx,)
        self.directions = 2 if n["bidirectional"] else 1
        params: Any = n["params"]
        self.params: tuple[Ref, ...] = params
        layers: Any = n["num_layers"]
        self.layers: int = layers
        self.per_cell = len(params) // (layers * self.directions)
        self.projects = self.per_cell > (4 if n["has_biases"] else 2)
        self.ends: tuple[list[Ref], ...] = tuple([] for _ in self.first)

    def run(self) -> tuple[Ref, ...]:
        """The states of the last layer, and the final states of all layers and directions."""
        b, n = self.b, self.n
        x: Any = n["input"]
        x = b("aten.transpose.int", x, 0, 1) if n["batch_first"] else x
        for i in range(self.layers):
            x = self.dropped(x) if i else x
            outs = tuple(self.direction(x, i, d) for d in range(self.directions))
            x = outs[0] if len(outs) == 1 else b("aten.cat.default", outs, -1)
        ends = tuple(
            b("aten.stack.default", tuple(e), 0) if len(e) > 1 else b("aten.unsqueeze.default", e[0], 0)
            for e in self.ends
        )
        return (b("aten.transpose.int", x, 0, 1) if n["batch_first"] else x, *ends)

    def dropped(self, x: Ref) -> Ref:
        """`x`, with dropout between layers while training."""
        p: Any = self.n["dropout"]
        return dropped(self.b, x, p) if self.n["train"] and p else x

    def direction(self, x: Ref, layer: int, direction: int) -> Ref:
        """The states of one layer in one direction; notes its final states."""
        b, at = self.b, layer * self.directions + direction
        w_ih, w_hh, *rest = self.params[at * self.per_cell : (at + 1) * self.per_cell]
        biases = tuple(rest[:2]) if self.n["has_biases"] else (None, None)
        projection = rest[2 * bool(self.n["has_biases"]) :]
        first = tuple(b("aten.select.int", h, 0, at) for h in self.first)
        if projection:
            call, states = self.projected(x, first, (w_ih, w_hh, *biases, *projection), bool(direction))
        else:
            call = b(f"pcc.{self.kind}_layer", x, *first, w_ih, w_hh, *biases, *self.extra, bool(direction))
            states = call if self.kind == "rnn" else b.get(call, 0)
        states = self.named(states, f"layer{layer}{'_reverse' if direction else ''}")
        self.ends[0].append(b("aten.select.int", states, 0, 0 if direction else -1))
        if len(self.ends) > 1:
            self.ends[1].append(b.get(call, 1))
        return states

    def projected(
        self, x: Ref, first: tuple[Ref, ...], weights: tuple[Ref | None, ...], reverse: bool
    ) -> tuple[Ref, Ref]:
        """A layer whose states are projected, as one over sequences that all last to the end; and its states."""
        b, shape = self.b, self.b.shape(x)
        sizes = b("aten.full.default", (shape[0],), shape[1], dtype=torch.int64, device=DEVICE)
        call = b(LAYERS["lstm"], _rows(b, x), sizes, *first, *weights, reverse)
        return call, b.view(b.get(call, 0), (*shape[:2], b.shape(first[0])[1]))

    def named(self, states: Ref, label: str) -> Ref:
        """The states that were just made, under a name that says which layer it is."""
        name = f"{self.n.name}_{label}"
        if name in self.b.types or self.b.nodes[-1].name != states:
            return states
        self.b.rename(len(self.b.nodes) - 1, name)
        return Ref(name)


def _expansion(kind: str, *extra: str) -> Callable[[Builder, Node], Any]:
    def expand(b: Builder, n: Node) -> Any:
        stack = _Stack(b, n, kind, extra)
        if stack.projects and isinstance(b.shape(n["input"])[0 if not n["batch_first"] else 1], int):
            return decompose(b, replace(n, op=NAMES.get(n.op, n.op)))  # known steps have a circuit, too
        return stack.run()

    return expand


for name, *layer in (
    ("aten.lstm.input", "lstm"),
    ("aten.gru.input", "gru"),
    ("aten.rnn_tanh.input", "rnn", "tanh"),
    ("aten.rnn_relu.input", "rnn", "relu"),
):
    rewrite(name, _expansion(*layer))
for name, own in NAMES.items():
    rewrite(name, OPS[own].expand or decompose)


def _packed(b: Builder, n: Node) -> Any:
    raise CompileError(f"{n.op} reads a packed sequence", n.where, "pad the sequences instead, and mask the loss")


for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
    rewrite(f"aten.{name}.data", _packed)
