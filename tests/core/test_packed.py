"""Packed sequences: gradients are eager torch's for any lengths, and lengths that do not fit are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

import pccompile
from core.models import half_squares
from pccompile import CompileError

X = torch.linspace(-3, 3, 60, dtype=torch.float64).view(4, 5, 3).sin()
N = torch.tensor([2, 5, 3, 1])
LENGTHS = (N, torch.tensor([4, 4, 1, 1]), torch.tensor([1, 1, 1, 1]), torch.tensor([5, 5, 5, 5]))


def pack(x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def falling(x: Tensor, lengths: Any) -> PackedSequence:
    return pack_padded_sequence(x, lengths, batch_first=True)


def padded(packed: PackedSequence, **how: Any) -> Tensor:
    return pad_packed_sequence(packed, batch_first=True, **how)[0]


def step(run: Any, model: nn.Module, x: Tensor, *more: Any) -> dict[str, Any]:
    """What `run` returns, and the gradients of the parameters of `model` and of `x`."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    results = run(x, *more)
    results = results if isinstance(results, tuple) else (results,)
    sum((i + 1) * (r + 0.1).square().sum() for i, r in enumerate(results)).backward()  # type: ignore[union-attr]
    return {k: p.grad for k, p in model.named_parameters()} | {"x": x.grad, "results": results}


def check(model: nn.Module, x: Tensor = X, lengths: tuple[Any, ...] = LENGTHS, **how: Any) -> Any:
    """Compile the model at the first lengths; there and at all others it is what eager torch is."""
    eager = copy.deepcopy(model)
    pc = pccompile.compile(model, (x, lengths[0]), **how)
    for n in lengths:
        torch.testing.assert_close(step(pc, model, x, n), step(eager, eager, x, n), rtol=1e-9, atol=1e-12)
    return pc


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


class Layers(nn.Module):
    """An LSTM and a GRU, and what a test does with them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.a, self.b = nn.LSTM(3, 3, batch_first=True), nn.GRU(3, 3, batch_first=True)
        self.h = nn.Parameter(torch.randn(1, 1, 3))
        self.double()

    def forward(self, x: Tensor, *more: Any) -> Any:
        return self.function(self, x, *more)


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


# lengths that do not fit


@pytest.mark.parametrize(
    "lengths, text",
    [
        ([2, 5, 0, 1], "length of every packed sequence must be at least 1"),
        ([2, 6, 3, 1], "a packed sequence is to have 6 steps, and the padded ones have 5"),
        ([5, 3, 4, 1], "sorted in decreasing order"),
        ([3, 2, 1], "3 lengths are given for 4 packed sequences"),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_are_refused(lengths: list[int], text: str) -> None:
    m = Layers(lambda m, x, n: m.b(falling(x, n))[1])
    pc = pccompile.compile(m, (X, torch.tensor([5, 3, 2, 1])))
    for run in (m, pc):
        with pytest.raises(RuntimeError):
            run(X, torch.tensor(lengths))
    with pytest.raises(RuntimeError, match=text):
        pc(X, torch.tensor(lengths))


def test_what_needs_the_longest_sequence_to_be_whole_says_so() -> None:
    """Torch would broadcast a longest sequence of one step, and a rule would not know."""
    m = Layers(lambda m, x, n: padded(m.a(pack(x, n))[0]) + x)
    pc = check(m, lengths=(N, torch.tensor([5, 5, 1, 1])))
    for n, text in (([4, 3, 2, 1], "is 4, and forward needs 5"), ([1, 1, 1, 1], "is 1, and forward needs 5")):
        with pytest.raises(RuntimeError, match=text):
            pc(X, torch.tensor(n))


def test_a_branch_on_the_longest_length_holds_for_the_whole_length_only() -> None:
    def branching(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        y = padded(m.a(pack(x, n))[0])
        return y * 2 if y.size(1) > 3 else y

    pc = check(Layers(branching), lengths=(N, torch.tensor([5, 5, 1, 1])))
    with pytest.raises(RuntimeError, match="longest sequence of all 5 steps, and the longest here has 3"):
        pc(X, torch.tensor([3, 3, 2, 1]))


def test_other_lengths_of_a_pair_are_not_broadcast() -> None:
    def pair(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        return padded(m.a(pack(x, n))[0]) + padded(m.b(pack(x, n.clamp(min=2)))[0])

    pc = check(Layers(pair), lengths=LENGTHS[:2])
    with pytest.raises(RuntimeError, match="is 2, and forward needs 1"):
        pc(X, torch.tensor([1, 1, 1, 1]))


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda m, x, n: padded(m.a(pack(x, n))[0], total_length=3), "depends on the lengths of packed sequences"),
        (lambda m, x, n: m.a(pack(x, n[:, None]))[1][0], "lengths of one dimension"),
        (lambda m, x, n: m.a(pack(x, n)._replace(batch_sizes=n))[1][0], "read from a tensor's contents"),
        (
            lambda m, x, n: m.a(falling(x, n), (m.h, m.h))[1][0],
            r"Expected hidden\[0\] size \(1, 4, 3\), got \[1, 1, 3\]",
        ),
    ],
    ids=["short total length", "matrix", "own sizes", "states of another batch"],
)
def test_what_is_refused_by_name(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(CompileError, match=text):
        pccompile.compile(Layers(function), (X, N))


def test_a_packed_argument_is_refused_and_a_packed_result_returned() -> None:
    with pytest.raises(CompileError, match=r"(?s)given a packed sequence.*pack them in forward"):
        pccompile.compile(nn.LSTM(3, 4).double(), (pack(X, N),))
    m = Layers(lambda m, x, n: m.a(pack(x, n))[0])
    pc = pccompile.compile(m, (X, N))
    for n in LENGTHS:
        torch.testing.assert_close(tuple(pc(X, n)), tuple(m(X, n)))


def test_what_else_a_model_branches_on_is_not_laid_on_lengths() -> None:
    m = Layers(lambda m, x, n: m.a(pack(x, n))[1][0] if x.sum() > 0 else x)
    with pytest.raises(CompileError, match="data-dependent") as caught:
        pccompile.compile(m, (X, N))
    assert "packed sequence" not in str(caught.value)


def test_autocast_is_refused_around_packed_layers_only() -> None:
    def beside(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = (x @ x.transpose(1, 2))[..., :3]
        return m.b(pack(x.float() * m.h, n))[1]

    def within(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.b(pack(x, n))[1]

    m, x = Layers(beside).float(), X.float()
    torch.testing.assert_close(pccompile.compile(m, (x, N))(x, N), m(x, N))
    with pytest.raises(CompileError, match="packed sequences under autocast"):
        pccompile.compile(Layers(within).float(), (x, N))


def test_a_circuit_has_none() -> None:
    with pytest.raises(CompileError, match="no circuit for a recurrent layer over packed sequences"):
        pccompile.compile(Layers(cells_and_states), (X, N), backend="netlist")


def test_other_lengths_of_data_are_not_broadcast_either() -> None:
    """The same without packing: torch takes it that as many entries are positive as there are factors."""
    m = Layers(lambda m, x: (x * m.h)[x > 0] * torch.arange(1.0, 4.0))
    x = torch.tensor([1.0, 1, -1, -1, 1, -1]).view(1, 2, 3).double()
    pc = pccompile.compile(m, (x,))
    torch.testing.assert_close(step(pc, m, x), step(m, m, x))
    with pytest.raises(RuntimeError, match="is 1, and forward needs 3"):
        pc(torch.eye(1, 6).view(1, 2, 3).double())


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
