"""Recurrent layers over packed sequences: rows of all steps, one after the other, as many as sequences last so long.

How many rows a step has is data. A layer and direction is one operation that loops over the steps, as in `recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from pccompile.ir import Arg, Node, Ref, TensorType, Type
from pccompile.ops import packed_source as source
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Sample, call_of, define, normal

SIZES = "pccompile.batch_sizes.default"
LAYERS = {kind: f"pccompile.packed_{kind}.default" for kind in ("lstm", "gru", "rnn")}
TypeOf = Callable[[Ref], TensorType]


def _namespace() -> dict[str, Any]:
    """The functions of generated files, which the operators below run where they are called outside of one."""
    space: dict[str, Any] = {"torch": torch}
    exec("\n".join((source.SIZES, source.LSTM, source.GRU, source.RNN)), space)
    return space


_run = _namespace()


@torch.library.custom_op("pccompile::batch_sizes", mutates_args=())
def batch_sizes(
    lengths: Tensor, batch: int, steps: int, most: int | None, longest: bool, device: torch.device
) -> Tensor:
    """How many of `batch` sequences last longer than each step, of which there are as many as the longest has.

    The lengths must fall, from `most` or from `steps`. longest: the longest must have all `steps`. Raises RuntimeError
    for other lengths.
    """
    found: Tensor = _run["batch_sizes"](lengths, batch, steps, most, longest, device)
    return found


@batch_sizes.register_fake
def _(lengths: Tensor, batch: int, steps: int, most: int | None, longest: bool, device: torch.device) -> Tensor:
    most = steps if most is None and isinstance(steps, int) else most
    count = steps if longest else torch.library.get_ctx().new_dynamic_size(min=1, max=most)
    return lengths.new_empty([count], device=device)


@torch.library.custom_op("pccompile::packed_lstm", mutates_args=())
def packed_lstm(
    x: Tensor,
    sizes: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An LSTM layer over the rows `x`: all h, the last c; gates, c, and h and c before, of each row."""
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _run["packed_lstm"](
        x, sizes, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, reverse
    )
    return found


@packed_lstm.register_fake
def _(x: Tensor, sizes: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, *rest: Any) -> Any:
    rows = x.shape[0]
    states, cells = (x.new_empty([rows, s.shape[1]]) for s in (h, c))
    gates = x.new_empty([rows, w_ih.shape[0]])
    return (states, *map(torch.empty_like, (c, gates, cells, states, cells)))


@torch.library.custom_op("pccompile::packed_gru", mutates_args=())
def packed_gru(
    x: Tensor, sizes: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A GRU layer over the rows `x`: all h; gates, and h before, of each row."""
    found: tuple[Tensor, Tensor, Tensor] = _run["packed_gru"](x, sizes, h, w_ih, w_hh, b_ih, b_hh, reverse)
    return found


@packed_gru.register_fake
def _(x: Tensor, sizes: Tensor, h: Tensor, *rest: Any) -> Any:
    states = x.new_empty([x.shape[0], h.shape[1]])
    return states, x.new_empty([x.shape[0], 4 * h.shape[1]]), torch.empty_like(states)


@torch.library.custom_op("pccompile::packed_rnn", mutates_args=())
def packed_rnn(
    x: Tensor, sizes: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None,
    nonlinearity: str, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A recurrent layer over the rows `x`: all h; h before each row."""
    found: tuple[Tensor, Tensor] = _run["packed_rnn"](x, sizes, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse)
    return found


@packed_rnn.register_fake
def _(x: Tensor, sizes: Tensor, h: Tensor, *rest: Any) -> Any:
    states = x.new_empty([x.shape[0], h.shape[1]])
    return states, torch.empty_like(states)


def _states_error(b: Builder, n: Node, error: Ref | None) -> Ref:
    """The error of all states, zeros where nothing reads them."""
    assert isinstance(n.type, tuple)
    states = n.type[0]
    assert states is not None
    return b.zeros(states) if error is None else error


def _weight_messages(b: Builder, n: Node, before: int, drive: Ref, recur: Ref) -> dict[str, Ref | None]:
    """Messages to the input and the weights, from the errors of each gate's part from the input and from the state.

    before: the number of the result that holds the states before each row.
    """
    messages: dict[str, Ref | None] = {}
    if n["x"] in b.wants:
        messages["x"] = b("aten.mm.default", drive, n["w_ih"])
    if n["w_ih"] in b.wants:
        messages["w_ih"] = b("aten.mm.default", b("aten.t.default", drive), n["x"])
    if n["w_hh"] in b.wants:
        messages["w_hh"] = b("aten.mm.default", b("aten.t.default", recur), b.get(Ref(n.name), before))
    for bias, errors in (("b_ih", drive), ("b_hh", recur)):
        if n[bias] in b.wants:
            messages[bias] = b.sum(errors, (0,))
    return messages


def _lstm_rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    gates, cells, before = (b.get(Ref(n.name), i) for i in (2, 3, 5))
    err = _states_error(b, n, errors[0])
    given = (gates, cells, before, n["sizes"], n["h"], n["c"], n["w_hh"], n["w_hr"], n["reverse"])
    sweep = b("pcc.packed_lstm_sweep", err, errors[1], *given)
    drive = b.get(sweep, 0)
    messages: dict[str, Ref | None] = {"h": b.get(sweep, 2), "c": b.get(sweep, 3)}
    if n["w_hr"] in b.wants:
        last = b.shape(gates)[1] // 4 * 3
        out = b.mul(b("aten.slice.Tensor", gates, 1, last), b("aten.tanh.default", cells))
        messages["w_hr"] = b("aten.mm.default", b("aten.t.default", b.get(sweep, 1)), out)
    return messages | _weight_messages(b, n, 4, drive, drive)


def _lstm_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    return tuple(type_of(args[k]) for k in ("gates", "err", "h", "c"))


def _gru_rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    gates, before = (b.get(Ref(n.name), i) for i in (1, 2))
    err = _states_error(b, n, errors[0])
    sweep = b("pcc.packed_gru_sweep", err, gates, before, n["sizes"], n["h"], n["w_hh"], n["reverse"])
    return {"h": b.get(sweep, 2)} | _weight_messages(b, n, 2, b.get(sweep, 0), b.get(sweep, 1))


def _gru_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    err = type_of(args["err"])
    gates = TensorType((err.shape[0], 3 * err.shape[1]), err.dtype)
    return gates, gates, type_of(args["h"])


def _rnn_rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    err = _states_error(b, n, errors[0])
    given = (b.get(Ref(n.name), 0), n["sizes"], n["h"], n["w_hh"], n["nonlinearity"], n["reverse"])
    sweep = b("pcc.packed_rnn_sweep", err, *given)
    drive = b.get(sweep, 0)
    return {"h": b.get(sweep, 1)} | _weight_messages(b, n, 1, drive, drive)


def _rnn_sweep_type(args: Mapping[str, Arg], type_of: TypeOf) -> Type:
    return type_of(args["err"]), type_of(args["h"])


def _sequence(gates: int, *more: Any, states: int = 1, bias: bool = True, out: int = 5) -> Sample:
    """A sample: sequences of three, two and two steps with four features, five hidden units."""

    def make() -> tuple[Any, ...]:
        padded = normal(3, 3, 4)
        rows, sizes = pack_padded_sequence(padded, torch.tensor([3, 2, 2]))[:2]
        first = (normal(3, out), normal(3, 5))[:states]
        biases = (normal(5 * gates), normal(5 * gates)) if bias else (None, None)
        projection = () if states == 1 else (normal(out, 5),) if out != 5 else (None,)
        return rows, sizes, *first, normal(5 * gates, 4), normal(5 * gates, out), *biases, *projection, *more

    return make


define(SIZES, "context", spell=call_of("batch_sizes"), helper=source.SIZES, equation="sequences at each step")
for kind, rule, helper, equation, samples in (
    (
        "lstm",
        _lstm_rule,
        source.LSTM,
        "LSTM(x)",
        (_sequence(4, False, states=2), _sequence(4, True, states=2, bias=False, out=2)),
    ),
    ("gru", _gru_rule, source.GRU, "GRU(x)", (_sequence(3, False), _sequence(3, True, bias=False))),
    (
        "rnn",
        _rnn_rule,
        source.RNN,
        "RNN(x)",
        (_sequence(1, "tanh", False), _sequence(1, "relu", True, bias=False)),
    ),
):
    define(
        LAYERS[kind],
        "composite",
        rule,
        spell=call_of(f"packed_{kind}"),
        equation=equation,
        helper=helper,
        samples=samples,
    )
for name, parameters, infer, helper in (
    (
        "lstm",
        ("err", "c_err", "gates", "cells", "before_c", "sizes", "h", "c", "w_hh", "w_hr", "reverse"),
        _lstm_sweep_type,
        source.LSTM_SWEEP,
    ),
    (
        "gru",
        ("err", "gates", "before", "sizes", "h", "w_hh", "reverse"),
        _gru_sweep_type,
        source.GRU_SWEEP,
    ),
    (
        "rnn",
        ("err", "states", "sizes", "h", "w_hh", "nonlinearity", "reverse"),
        _rnn_sweep_type,
        source.RNN_SWEEP,
    ),
):
    define(
        f"pcc.packed_{name}_sweep",
        "composite",
        spell=call_of(f"packed_{name}_sweep"),
        parameters=parameters,
        infer=infer,
        helper=helper,
    )
