"""Packed sequences while a model is captured: a gather of rows, recurrent operators over them, and a scatter.

How many rows there are, and steps, is read off tensors when the program runs: lengths are data. What torch itself would
do reads them at once, which no capture can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.process import replaced
from pccompile.ops.packed import batch_sizes, packed_gru, packed_lstm, packed_rnn


@dataclass(frozen=True)
class _Rows:
    """Where the rows of packed sequences come from: of each its step and its sequence, of which there are `batch`.

    lengths, ends: of each sequence its length, and its first and its last row.
    """

    sizes: Tensor
    batch: Any
    step: Tensor
    sequence: Tensor
    lengths: Tensor
    ends: tuple[Tensor, Tensor]


class Packing:
    """Packs, runs and pads what a model packs while it is captured.

    longest: take it that the longest sequence has all the steps that the padded ones have, which the program checks.
    most: the steps that the longest sequence may have, by the number of the pack, where it is padded to no more.
    """

    def __init__(self, longest: bool = False, most: Mapping[int, int] | None = None) -> None:
        self.longest, self.most = longest, dict(most or {})
        self.rows: dict[int, _Rows] = {}
        self.symbols: set[Any] = set()

    def settled(self, error: Exception) -> Packing | None:
        """How to capture where this failed since the longest length decides what is computed; None where it does not.

        What is taken for granted then is checked when the program runs.
        """
        undecided = getattr(error, "cond", None) if isinstance(error, GuardOnDataDependentSymNode) else None
        if undecided is None or self.symbols.isdisjoint(undecided.free_symbols):
            return None
        short = self._padded_to(error)
        if short is not None and short[0] not in self.most:
            return Packing(self.longest, self.most | dict([short]))
        return None if self.longest else Packing(True, self.most)

    def _padded_to(self, error: Exception) -> tuple[int, int] | None:
        """The number of the pack that was to be padded where torch failed, and to how many steps."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code is not pad_packed_sequence.__code__:
            trace = trace.tb_next
        if trace is None:
            return None
        sequence, steps = (trace.tb_frame.f_locals[k] for k in ("sequence", "total_length"))
        sizes = id(sequence.batch_sizes)
        return (list(self.rows).index(sizes), steps) if sizes in self.rows and isinstance(steps, int) else None

    def pack(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """The rows of sequences whose lengths fall, and how many there are at each step."""
        if padded.dim() < 2:
            raise ValueError("pack_padded_sequence takes sequences of two dimensions or more")
        if lengths.dim() != 1:
            raise ValueError(f"pack_padded_sequence takes lengths of one dimension, and these have {lengths.dim()}")
        batch, steps = padded.shape[:2] if batch_first else (padded.shape[1], padded.shape[0])
        most = self.most.get(len(self.rows))
        sizes = batch_sizes(lengths, batch, steps, most, self.longest, torch.device("cpu"))
        if not isinstance(steps, int) and not self.longest:
            torch._check(sizes.shape[0] <= steps)
        if isinstance(sizes.shape[0], torch.SymInt):
            self.symbols |= sizes.shape[0].node.expr.free_symbols
        rows = self._placed(sizes, batch)
        place = (rows.sequence, rows.step) if batch_first else (rows.step, rows.sequence)
        return padded[place], sizes

    def _placed(self, sizes: Tensor, batch: Any) -> _Rows:
        step = torch.repeat_interleave(sizes)
        starts, first = sizes.cumsum(0) - sizes, torch.arange(batch)
        sequence = torch.arange(step.shape[0]) - starts[step]
        lengths = (sizes[:, None] > first).sum(0)
        ends = first, starts[lengths - 1] + first
        rows = self.rows[id(sizes)] = _Rows(sizes, batch, step, sequence, lengths, ends)
        return rows

    def _rows_of(self, sizes: Tensor) -> _Rows:
        """The rows that `sizes` count, which a model may have made without packing."""
        if id(sizes) not in self.rows:
            self._placed(sizes, sizes[0].item())
        return self.rows[id(sizes)]

    def pad(self, data: Tensor, sizes: Tensor, batch_first: bool, padding: float, steps: Any) -> tuple[Tensor, Tensor]:
        """Padded sequences of so many steps, and their lengths."""
        rows = self._rows_of(sizes)
        shape = (rows.batch, steps) if batch_first else (steps, rows.batch)
        place = (rows.sequence, rows.step) if batch_first else (rows.step, rows.sequence)
        padded = data.new_full((*shape, *data.shape[1:]), padding).index_put(place, data)
        return padded, rows.lengths

    def recur(self, module: nn.RNNBase, packed: PackedSequence, first: Any) -> tuple[PackedSequence, Any]:
        """What a recurrent module makes of packed sequences, from the states `first` or from zeros."""
        module._update_flat_weights()
        data, sizes, order, back = packed
        rows, cell = self._rows_of(sizes), isinstance(module, nn.LSTM)
        module.check_input(data, sizes)
        count = module.num_layers * (2 if module.bidirectional else 1)
        widths = [module.proj_size or module.hidden_size] + ([module.hidden_size] if cell else [])
        shapes = [(count, rows.batch, width) for width in widths]
        if first is None:
            states = [data.new_zeros(shape) for shape in shapes]
        else:
            permuted = module.permute_hidden(first, order)
            states = list(permuted) if cell else [permuted]
            for i, (state, shape) in enumerate(zip(states, shapes, strict=True)):
                which = f"hidden[{i}]" if cell else "hidden"
                module.check_hidden_size(state, shape, f"Expected {which} size {{}}, got {{}}")
        data, ends = _layers(module, data, rows, states)
        last = ends if cell else ends[0]
        return PackedSequence(data, sizes, order, back), module.permute_hidden(last, back)  # type: ignore[arg-type]


def _layers(
    module: nn.RNNBase, data: Tensor, rows: _Rows, states: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rows that leave the last layer, and the last states of all layers and directions."""
    directions = 2 if module.bidirectional else 1
    weights: list[Any] = list(module._flat_weights)
    each = len(weights) // (module.num_layers * directions)
    ends: list[list[Tensor]] = [[] for _ in states]
    for layer in range(module.num_layers):
        if layer and module.dropout and module.training:
            data = F.dropout(data, module.dropout)
        outs = []
        for direction in range(directions):
            at = layer * directions + direction
            first, own = [s[at] for s in states], weights[at * each : (at + 1) * each]
            out, *cell = _layer(module, data, rows.sizes, first, own, bool(direction))
            outs.append(out)
            for end, state in zip(ends, (out.index_select(0, rows.ends[1 - direction]), *cell), strict=True):
                end.append(state)
        data = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
    return data, tuple(torch.stack(end) for end in ends)


def _layer(
    module: nn.RNNBase, data: Tensor, sizes: Tensor, first: list[Tensor], weights: list[Tensor], reverse: bool
) -> tuple[Tensor, ...]:
    """The states of one layer in one direction, and the last cells of each sequence where there are cells."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if module.bias else (None, None)
    if module.mode == "LSTM":
        w_hr = rest[-1] if module.proj_size else None
        out, c, *_ = packed_lstm(data, sizes, *first, w_ih, w_hh, b_ih, b_hh, w_hr, reverse)
        return out, c
    if module.mode == "GRU":
        return packed_gru(data, sizes, *first, w_ih, w_hh, b_ih, b_hh, reverse)[:1]  # type: ignore[no-any-return]
    nonlinearity = module.mode.removeprefix("RNN_").lower()
    return packed_rnn(data, sizes, *first, w_ih, w_hh, b_ih, b_hh, nonlinearity, reverse)[:1]  # type: ignore[no-any-return]


def refuse_packed_arguments(arguments: Any) -> None:
    """Raise CompileError where an argument is a packed sequence: how many rows it has is no size that can be free."""
    leaves = pytree.tree_leaves(arguments, is_leaf=lambda a: isinstance(a, PackedSequence))
    if any(isinstance(a, PackedSequence) for a in leaves):
        hint = "pass padded sequences and their lengths, and pack them in forward"
        raise CompileError("a model is given a packed sequence", hint=hint)


@contextmanager
def packed_sequences(packing: Packing) -> Iterator[None]:
    """Within: what this thread packs, runs through recurrent layers and pads is left to `packing`."""
    thread = threading.get_ident()

    def on_fakes(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident() == thread and isinstance(args[0], FakeTensor)
            return (ours if here else original)(*args, **kwargs)

        return run

    def forward(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(module: Any, input: Any, hx: Any = None) -> Any:
            packed = isinstance(input, PackedSequence) and isinstance(input.data, FakeTensor)
            if not packed or threading.get_ident() != thread:
                return original(module, input, hx)
            return packing.recur(module, input, hx)

        return run

    def as_tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """`data` as a tensor; that of numbers that were read from a tensor (`lengths.tolist()`) is no constant."""
        read = isinstance(data, list | tuple) and any(isinstance(d, torch.SymInt) for d in data)
        if not read or threading.get_ident() != thread:
            return plain(data, *args, **kwargs)
        whole = torch.stack([torch.full((), d, dtype=torch.int64) for d in data])
        return plain(whole, *args, **kwargs)

    plain = torch.as_tensor
    functions: dict[str, Callable[..., Any]] = {
        "_pack_padded_sequence": packing.pack,
        "_pad_packed_sequence": packing.pad,
    }
    with ExitStack() as stack:
        for name, ours in functions.items():
            stack.enter_context(replaced(torch._VF, **{name: on_fakes(getattr(torch._VF, name), ours)}))
        stack.enter_context(replaced(torch, as_tensor=as_tensor))
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            stack.enter_context(replaced(kind, forward=forward(kind.forward)))
        yield
