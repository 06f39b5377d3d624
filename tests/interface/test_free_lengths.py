"""Sequences of any length run one program; what counts its steps in Python is captured anew, and is said to be."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile

Inputs = Callable[[int, int], tuple[Tensor, ...]]


def vectors(batch: int, steps: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, steps, 4, dtype=torch.float64),)


def agree(model: nn.Module, inputs: Inputs, sizes: Iterable[tuple[int, int]], **how: Any) -> Any:
    """A compiled model that learns at all these sizes (batch, steps) as eager torch does, compiled at the first."""
    torch.manual_seed(0)
    pc, params = None, list(model.double().parameters())
    for size in sizes:
        args = inputs(*size)
        pc = pc or pccompile.compile(model, args, **how)
        found, expected = (torch.autograd.grad(run(*args).square().sum(), params) for run in (pc, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    return pc


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.core = getattr(nn, kind)(4, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.core(x if self.core.batch_first else x.transpose(0, 1))
        last = last[0] if isinstance(last, tuple) else last
        return states.sum((0, 1)) + torch.cat(tuple(last), -1).sum()


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 4), nn.Embedding(32, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(steps, dtype=torch.float64)
        return self.layer(self.tokens(x) + self.places(torch.arange(steps)), src_mask=mask, is_causal=True)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
        mixed = self.attention(x, x, x, attn_mask=mask)[0]
        return (mixed * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)


class Relative(nn.Module):
    """Attention by distance, with what recent language models add: a bias, a slope, means over all steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.query = nn.Parameter(torch.randn(19)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        distance = steps[:, None] - steps
        scores = self.query(x) @ x.transpose(1, 2) + self.bias[distance + 9] - distance.abs()
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ x
        return mixed.cumsum(1) / (steps + 1)[:, None] + x.flip(1).roll(1, 1)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.readout = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(x.reshape(x.shape[0], -1, 8))


def tokens(batch: int, steps: int) -> tuple[Tensor, ...]:
    return (torch.randint(11, (batch, steps)),)


def masks(batch: int, steps: int) -> tuple[Tensor, ...]:
    future = torch.full((steps, steps), float("-inf"), dtype=torch.float64).triu(1)
    return (*vectors(batch, steps), future, torch.ones(batch, steps, dtype=torch.float64))


def two(batch: int, steps: int) -> tuple[Tensor, ...]:
    return (*vectors(batch, steps), *vectors(batch, steps // 2 + 1))


BOTH = {"num_layers": 2, "bidirectional": True}


@pytest.mark.parametrize(
    "model, inputs",
    [
        (lambda: Recurrent("GRU", batch_first=True), vectors),
        (lambda: Recurrent("LSTM", **BOTH), vectors),
        (lambda: Recurrent("RNN", nonlinearity="relu", bias=False), vectors),
        (lambda: Recurrent("LSTM", proj_size=2, batch_first=True, bidirectional=True), vectors),
        (Language, tokens),
        (Masked, masks),
        (Relative, vectors),
        pytest.param(Windows, vectors, marks=pytest.mark.slow),
        pytest.param(lambda: Recurrent("GRU", **BOTH, bias=False), vectors, marks=pytest.mark.slow),
        pytest.param(lambda: Recurrent("LSTM", proj_size=1, **BOTH, bias=False), vectors, marks=pytest.mark.slow),
        pytest.param(lambda: nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True), two, marks=pytest.mark.slow),
    ],
)
def test_one_program_for_all_lengths(model: Callable[[], nn.Module], inputs: Inputs) -> None:
    pc = agree(model(), inputs, [(3, 4), (3, 10), (2, 6), (5, 8)])
    assert pc.recaptures == ()


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_capture_takes_as_many_operations_for_any_number_of_steps(kind: str) -> None:
    counts = []

    def count(stage: str, result: Any, seconds: float) -> None:
        if stage == "export":
            counts.append(len(result.graph.nodes))

    for steps in (3, 700):
        pccompile.compile(Recurrent(kind, **BOTH).double(), vectors(2, steps), hook=count, check=False)
    assert counts[0] == counts[1]


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


@pytest.mark.slow
def test_a_loop_in_python_is_captured_for_each_length_and_says_so() -> None:
    with pytest.warns(UserWarning, match="Cells was captured 9 times for other lengths.*input x: expected"):
        pc = agree(Cells(), vectors, [(2, steps) for steps in (2, 3, 2, 4, 5, 6, 7, 8, 9, 10)])
    assert len(pc.recaptures) == 8
    assert "in dimension 1" in pc.recaptures[0]


def images(batch: int, size: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 2, size, size, dtype=torch.float64),)


def waves(batch: int, steps: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 2, steps, dtype=torch.float64),)


@pytest.mark.parametrize(
    "model, inputs",
    [
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3)), images),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 5, padding=2), nn.ReLU(), nn.Conv1d(3, 2, 3, dilation=2)), waves),
    ],
)
def test_what_has_varied_once_is_free(model: Callable[[], nn.Module], inputs: Inputs) -> None:
    pc = agree(model(), inputs, [(3, 9), (3, 12), (2, 17), (4, 11)])
    assert len(pc.recaptures) == 1


def test_a_loop_in_python_is_right_at_each_length() -> None:
    assert len(agree(Cells(), vectors, [(2, 3), (2, 4), (2, 3)], check=False).recaptures) == 1


def test_a_batch_of_one_and_one_step() -> None:
    pc = agree(Recurrent("LSTM", batch_first=True), vectors, [(1, 1), (3, 4), (1, 6), (2, 1), (4, 7)])
    assert len(pc.recaptures) < 5


@pytest.mark.parametrize("kind", ["GRU", pytest.param("LSTM", marks=pytest.mark.slow)])
def test_under_autocast(kind: str) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind, batch_first=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pc = pccompile.compile(model, (torch.randn(2, 5, 4),))
        for steps in (5, 7):
            x = torch.randn(2, steps, 4)
            torch.testing.assert_close(pc(x), model(x), rtol=0.02, atol=0.02)


def test_a_call_that_is_refused_is_no_capture() -> None:
    pc = pccompile.compile(nn.Linear(3, 2), (torch.randn(4, 3),))
    for width in (4, 5):
        with pytest.raises(pccompile.CompileError):
            pc(torch.randn(4, width))
    assert pc.recaptures == ()


def test_dropout_between_layers_is_eager_torchs() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True).double().train()
    pc = pccompile.compile(model, vectors(2, 5))
    for steps in (5, 8):
        (x,) = vectors(2, steps)
        torch.manual_seed(1)
        expected = model(x)[0]
        torch.manual_seed(1)
        torch.testing.assert_close(pc(x)[0], expected)
