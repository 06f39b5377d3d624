"""A loss that uses some of a model's results: the others send nothing back, and not zeros, as in eager torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, linalg, nn

import pccompile
from pccompile.runtime import partial_losses
from validity.test_custom_functions import Pair

SYMMETRIC = torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.5], dtype=torch.float64))
"""A value that stands twice has an infinite term in the derivative of its vectors."""


class Results(nn.Module):
    """Several results of one weight."""

    def __init__(self, results: Callable[[Tensor], Sequence[Tensor]], start: Tensor) -> None:
        super().__init__()
        self.results, self.w = results, nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.results(self.w * x))


def _two_layers(a: Tensor) -> tuple[Tensor, ...]:
    return a.tanh() @ a, a.sum(0).sqrt(), (a - 2).abs().log().mean()


KINDS: dict[str, tuple[Callable[[Tensor], Sequence[Tensor]], Tensor]] = {
    "svd": (lambda a: linalg.svd(a), SYMMETRIC),
    "eigh": (lambda a: linalg.eigh(a + a.mT), SYMMETRIC),
    "eig, real parts": (lambda a: [t.real for t in linalg.eig(a)], SYMMETRIC + torch.ones(4, 4).triu(1)),
    "qr": (lambda a: linalg.qr(a), SYMMETRIC + 1),
    "lu": (lambda a: linalg.lu(a)[1:], SYMMETRIC + 1),
    "logarithm of a determinant": (lambda a: (linalg.slogdet(a)[1], linalg.inv_ex(a)[0]), SYMMETRIC),
    "deviation of equal numbers": (lambda a: torch.std_mean(a, 1), torch.ones(4, 4, dtype=torch.float64)),
    "sorted": (lambda a: (a.sort(0)[0], a.topk(2)[0], a.cummax(0)[0].sqrt()), torch.zeros(4, 4, dtype=torch.float64)),
    "a root at 0": (_two_layers, torch.zeros(4, 4, dtype=torch.float64)),
    "a custom backward": (Pair.apply, SYMMETRIC + 1),
}


def _gradients(called: Any, model: nn.Module, x: Tensor, used: Sequence[int]) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(0)
    results = called(x)
    sum((results[i].sin() * (i + 1.3)).sum() for i in used).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def _same(model: nn.Module, pc: Any, x: Tensor, used: Sequence[int]) -> None:
    for expected, found in zip(_gradients(model, model, x, used), _gradients(pc, model, x, used), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(("results", "start"), KINDS.values(), ids=KINDS)
def test_what_a_loss_does_not_use_sends_nothing(results: Any, start: Tensor) -> None:
    x = torch.ones(4, 4, dtype=torch.float64)
    model = Results(results, start)
    pc = pccompile.compile(model, (x,))
    count = len(model(x))
    for size in range(1, count + 1):
        for used in itertools.combinations(range(count), size):
            _same(model, pc, x, used)


class Exits(nn.Module):
    """A network with a result after each layer; random draws, running statistics, a branch and a free batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.norm, self.dropout, self.alone = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results = []
        for layer in self.layers:
            x = self.dropout(torch.tanh(self.norm(layer(x))))
            results.append(torch.cond(x.sum() > 0, lambda h: h * 2, torch.sin, (x,)))
        return *results, (self.alone(x) - self.alone(x)).sum(0).sqrt()


FIXED = {"algorithm": "fixed-prediction", "rate": 0.5, "steps": 200}


@pytest.mark.quick(2)
@pytest.mark.parametrize("settings", [{}, {"granularity": "layer"}, FIXED, {**FIXED, "lowering": "relax"}], ids=str)
def test_every_early_exit_trains_alone(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Exits().double(), torch.randn(6, 5, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), **settings)
    for used, rows in itertools.product(((0,), (1,), (0, 2), (2, 1), (0, 1, 2)), (6, 3)):
        _same(model, pc, x[:rows], used)


def test_a_loss_that_reads_one_result_leaves_the_others_alone() -> None:
    model = Results(_two_layers, torch.zeros(4, 4, dtype=torch.float64))
    x, y = torch.ones(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)

    def loss(results: tuple[Tensor, ...], target: Tensor) -> Tensor:
        return (results[0] - target).square().sum() + (results[0] - 1).sum()

    pc = pccompile.compile(model, (x,), loss=loss)
    loss(model(x), y).backward()
    expected, model.w.grad = model.w.grad, None
    pc.loss(x, target=y).backward()
    torch.testing.assert_close(model.w.grad, expected, rtol=1e-9, atol=1e-9)


def test_results_used_in_two_backward_passes_add_up() -> None:
    model = Results(_two_layers, torch.full((4, 4), 0.5, dtype=torch.float64))
    x = torch.ones(4, 4, dtype=torch.float64)
    pc, found = pccompile.compile(model, (x,)), []
    for called in (model, pc):
        model.w.grad = None
        first, second, _ = called(x)
        first.sum().backward(retain_graph=True)
        second.sum().backward()
        found.append(model.w.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


class Blocks(torch.autograd.Function):
    """Sends its first argument nothing at all, where `zeros_like` would be zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * y, x + y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0] + grads[1]


def _cut_custom(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return Blocks.apply(a.tanh(), b)  # type: ignore[no-any-return]


def _cut_sign(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return linalg.slogdet(a.tanh())[0] * b, b.sin()


def _sign_or_logarithm(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    sign, logarithm = linalg.slogdet(a)
    return sign * b, logarithm * b


def _cut_all(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return linalg.slogdet(a)[0].tanh(), linalg.slogdet(a @ b)[0]


def _cut_once(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return Blocks.apply(a, b)[0], a.exp()


def _rounded(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return a.round(), b.sin()


def _sign_of_both(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return (a * b).sign(), b.cos(), torch.where(a > 0, b.floor(), b)


def _rounded_and_cut(a: Tensor, b: Tensor) -> Sequence[Tensor]:
    return Blocks.apply(a, b.sign())[0], a.ceil() + b.tanh(), a.trunc()


@pytest.mark.quick(6)
@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
@pytest.mark.parametrize("granularity", ["op", "layer"])
@pytest.mark.parametrize("results", [_rounded, _sign_of_both, _rounded_and_cut])
def test_what_passes_a_derivative_of_zero_has_a_gradient_of_zeros(
    results: Any, granularity: str, algorithm: str
) -> None:
    """Weight decay moves it in eager torch, too."""
    test_what_no_operation_sends_anything_has_no_gradient(results, granularity, algorithm)


@pytest.mark.quick(6)
@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
@pytest.mark.parametrize("granularity", ["op", "layer"])
@pytest.mark.parametrize("results", [_cut_custom, _cut_sign, _sign_or_logarithm, _cut_all, _cut_once])
def test_what_no_operation_sends_anything_has_no_gradient(results: Any, granularity: str, algorithm: str) -> None:
    """Neither zeros: weight decay would move a parameter that eager torch leaves alone."""
    torch.manual_seed(0)
    model = TwoLayers(results).double()
    x = torch.randn(3, 3, dtype=torch.float64)
    options = {"steps": 50, "rate": 1.0} if algorithm == "fixed-prediction" else {}
    pc = pccompile.compile(model, (x,), algorithm=algorithm, granularity=granularity, **options)
    for used in ((0,), (1,), (0, 1)):
        _same(model, pc, x, used)


class Layers(nn.Module):
    """Recurrent layers, what is read off their last step, and their states."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, both_ways: bool) -> None:
        super().__init__()
        self.layers = kind(3, 4, num_layers=layers, bidirectional=both_ways, batch_first=True)
        self.read = nn.Linear(8 if both_ways else 4, 2)
        self.start = nn.Parameter(torch.rand(layers * (2 if both_ways else 1), 1, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        start = self.start.expand(-1, len(x), -1).contiguous()
        states, last = self.layers(x, (start, start) if isinstance(self.layers, nn.LSTM) else start)
        return self.read(states[:, -1]), states, *(last if isinstance(last, tuple) else (last,))


@pytest.mark.quick(2)
@pytest.mark.parametrize("settings", [{}, {"granularity": "layer"}, FIXED], ids=["exact", "layers", "fixed"])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_hand_on_states_under_two_names(
    kind: type[nn.RNNBase], layers: int, both_ways: bool, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model, x = Layers(kind, layers, both_ways).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), **settings)
    for used in ([0], [1], [2], [0, 2]):
        _same(model, pc, x, used)


class TwoLayers(nn.Module):
    """Two layers and what follows from both."""

    def __init__(self, results: Callable[[Tensor, Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.a, self.b, self.results = nn.Linear(3, 3), nn.Linear(3, 3), results

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.results(self.a(x), self.b(x)))


def test_more_sets_of_results_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_losses, "MANY", 2)
    model = Results(lambda a: (a.tanh(), a.sqrt(), a.exp()), torch.zeros(4, dtype=torch.float64))
    x = torch.zeros(4, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    for used in ((0,), (2,), (0, 2), (0,), (2,)):
        _same(model, pc, x, used)
