"""Packed sequences: outputs and gradients are eager torch's, for any lengths; other algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import half_squares
from helpers.packing import LENGTHS, Layers, N, X, check, falling, pack, padded, step
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

import pccompile


class Net(nn.Module):
    """A linear layer, a recurrent one over packed sequences, and a linear one over their rows."""

    def __init__(self, kind: str, order: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order, self.first, self.core = order, nn.Linear(3, 3), getattr(nn, kind)(3, 4, **options)
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.last = nn.Linear(width, 2)
        self.double()

    def forward(self, x: Tensor, n: Any) -> tuple[Tensor, ...]:
        first = self.core.batch_first
        p, state = self.core(pack_padded_sequence(self.first(x), n, first, enforce_sorted=self.order))
        p = PackedSequence(self.last(p.data).tanh(), p.batch_sizes, p.sorted_indices, p.unsorted_indices)
        y, lengths = pad_packed_sequence(p, first, padding_value=0.5)
        return (y, lengths.to(y.dtype), *(state if isinstance(state, tuple) else (state,)))


BOTH = {"bidirectional": True, "batch_first": True}


@pytest.mark.quick(5)
@pytest.mark.parametrize(
    "kind, options",
    [
        ("LSTM", {}),
        ("LSTM", {"batch_first": True, "bias": False}),
        ("LSTM", {**BOTH, "num_layers": 2}),
        ("LSTM", {"proj_size": 2, "batch_first": True}),
        ("LSTM", {**BOTH, "proj_size": 2, "num_layers": 2, "bias": False}),
        ("GRU", {}),
        ("GRU", {**BOTH, "num_layers": 2}),
        ("GRU", {"bias": False, "batch_first": True}),
        ("RNN", {"num_layers": 2}),
        ("RNN", {**BOTH, "nonlinearity": "relu"}),
        ("RNN", {"nonlinearity": "relu", "num_layers": 3, "bias": False}),
    ],
    ids=str,
)
def test_every_option(kind: str, options: dict[str, Any]) -> None:
    x = X if options.get("batch_first") else X.transpose(0, 1).contiguous()
    check(Net(kind, **options), x)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_lengths_that_fall(kind: str) -> None:
    falling = tuple(n.sort(descending=True)[0] for n in LENGTHS)
    check(Net(kind, True, batch_first=True), lengths=falling)


def given_states(m: Layers, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    first = x[:, 0].sin()[None] + m.h
    return m.a(pack(x, n), (first, first.cos()))[1][0], m.b(pack(x, n), first)[1]


def cells_and_states(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    h, c = m.a(pack(x, n))[1]
    return h * c


def two_in_a_row(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    p, _ = m.a(pack(x, n))
    return padded(m.b(p._replace(data=p.data.relu()))[0]).cumsum(1)


def joined(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return padded(m.a(pack(x, n))[0]) + padded(m.b(pack(x, n))[0])


def joined_rows(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    p = pack(x, n)
    return m.a(p)[0].data * m.b(p)[0].data + p.data


def to_the_end(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return padded(m.a(pack(x, n.cpu()))[0], total_length=x.size(1)) + x


def beyond_the_end(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return padded(m.a(pack(x, n))[0], total_length=7, padding_value=-1.0)


def numbers_that_were_read(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return padded(m.a(pack(x, n.tolist()))[0])


def computed(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    mask = torch.arange(x.size(1)) < n[:, None]
    return padded(m.a(pack(x, mask.sum(1)))[0])


def pooled(m: Layers, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    y, lengths = pad_packed_sequence(m.a(pack(x, n))[0], batch_first=True)
    mask = torch.arange(y.size(1)) < lengths[:, None]
    return (y * mask[..., None]).sum(1) / lengths[:, None], y.amax(1), y[torch.arange(y.size(0)), lengths - 1]


def attended(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    y, lengths = pad_packed_sequence(m.b(pack(x, n))[0], batch_first=True)
    mask = torch.arange(y.size(1)) < lengths[:, None]
    return (y @ y.transpose(1, 2)).masked_fill(~mask[:, None], -1e9).softmax(-1) @ y


def of_no_features(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    """Rows of packed numbers, as the targets of a loss."""
    return pack(x[..., 0], n).data.square() * pack(x * m.h, n).data.sum(1)


def without_a_layer(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return padded(pack(x.flip(1) * m.h, n))


FUNCTIONS = (given_states, cells_and_states, two_in_a_row, joined, joined_rows, to_the_end, beyond_the_end,
             numbers_that_were_read, computed, pooled, attended, of_no_features, without_a_layer)  # fmt: skip


@pytest.mark.quick(7)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_what_models_do_with_packed_sequences(function: Callable[..., Any]) -> None:
    check(Layers(function))


def test_lengths_as_an_argument_that_is_a_list() -> None:
    check(Layers(cells_and_states), lengths=tuple(n.tolist() for n in LENGTHS))


def test_one_program_serves_all_lengths_and_batch_sizes() -> None:
    m = Layers(cells_and_states)
    pc = check(m)
    text = pc.source
    for batch in (1, 2, 7):
        x, n = torch.randn(batch, 5, 3).double(), torch.randint(1, 6, (batch,))
        torch.testing.assert_close(step(pc, m, x, n), step(m, m, x, n), rtol=1e-9, atol=1e-12)
    assert pc.source == text
    x, n = torch.randn(2, 9, 3).double(), torch.tensor([9, 6])  # another number of steps is another program
    torch.testing.assert_close(step(pc, m, x, n), step(m, m, x, n), rtol=1e-9, atol=1e-12)


def test_lengths_that_stand_in_the_model() -> None:
    """Numbers in the code, a tensor that no module holds and a buffer, changed in place and replaced."""
    m: Any = Layers(
        lambda m, x: (
            padded(m.a(pack(x, [4, 2, 5, 1]))[0]) + x,
            m.a(pack(x, m.own))[1][0],
            m.b(pack(x, m.buffer))[1],
        )
    )
    m.own = torch.tensor([1, 2, 3, 4])
    m.register_buffer("buffer", N.clone())
    pc = pccompile.compile(m, (X,))
    for change in (lambda: None, lambda: m.own.fill_(5), lambda: m.buffer.fill_(2), lambda: setattr(m, "own", N)):
        change()
        torch.testing.assert_close(step(pc, m, X), step(m, m, X), rtol=1e-9, atol=1e-12)


def test_lists_of_sequences() -> None:
    m = Layers(lambda m, *parts: padded(m.a(pack_sequence(parts, enforce_sorted=False))[0]))
    n = Layers(lambda m, *parts: padded(m.a(pack(pad_sequence(parts, batch_first=True), [len(p) for p in parts]))[0]))
    for model in (m, n):
        pc = pccompile.compile(model, (X[0, :2], X[1], X[2, :3]))
        for parts in ((X[0, :2], X[1], X[2, :3]), (X[0], X[1, :1], X[2, :4])):
            torch.testing.assert_close(step(pc, model, *parts), step(model, model, *parts), rtol=1e-9, atol=1e-12)


def test_dropout_between_layers_draws_what_eager_torch_draws() -> None:
    m = Net("LSTM", batch_first=True, num_layers=3, dropout=0.4)
    pc = pccompile.compile(m, (X, N))
    for mode in (True, False):
        m.train(mode)
        found = []
        for run in (pc, m):
            torch.manual_seed(3)
            found.append(step(run, m, X, N))
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


# other algorithms


def ended(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    """The last states of a GRU over packed sequences, each taken through the packed rows."""
    return m.b(falling((x * m.h).tanh(), n))[1][0]


def whole(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    """The same of one sequence that has all its steps: its rows are gathered, and then stand one after the other."""
    steps = torch.arange(x.size(1))
    rows = (x * m.h).tanh()[torch.zeros_like(steps), steps]
    states = m.b(rows[None])[0][0]
    return torch.stack([states.index_select(0, n - 1)])[0]


def learned(function: Callable[..., Any], x: Tensor, n: Tensor, **how: Any) -> dict[str, Tensor]:
    m = Layers(function)
    pc = pccompile.compile(m, (x, n), loss=half_squares, dynamic_shapes={}, **how)
    pc.loss(x, n, target=torch.zeros(len(x), 3).double()).backward()
    return {k: p.grad for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("algorithm", ["fixed-prediction", "strict"])
def test_inference_in_steps_is_that_of_each_sequence_alone(algorithm: str) -> None:
    """Sequences of a batch have no vertex in common, so the batch learns the sum of what each of them learns."""
    n = N.sort(descending=True)[0]
    found = learned(ended, X, n, algorithm=algorithm, steps=6, rate=0.1)
    alone = [learned(whole, X[i : i + 1, :k], n[i : i + 1], algorithm=algorithm, steps=6, rate=0.1) for i, k in
             enumerate(n.tolist())]  # fmt: skip
    expected = {k: sum(part[k] for part in alone) for k in found}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_fixed_prediction_settles_at_the_gradient() -> None:
    found = learned(ended, X, N.sort(descending=True)[0], algorithm="fixed-prediction", steps=400, rate=0.3)
    exact = learned(ended, X, N.sort(descending=True)[0])
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
