"""Reentrant checkpoints, samples that change with their parameters, fake quantisation, averages over all batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pccompile
from pccompile import CompileError


class Layers(nn.Module):
    """Two layers, a norm and learnt scales for the functions below."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.run = nn.Linear(6, 6), nn.Linear(6, 6), run
        self.norm = nn.BatchNorm1d(6, momentum=None)
        self.scale, self.zero = nn.Parameter(torch.tensor([0.1])), nn.Parameter(torch.tensor([0.0]))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def again(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=True, **named)


def compare(run: Callable[..., Any], learns: bool = False, calls: int = 1) -> None:
    """Assert that a compiled model has eager's outputs, gradients and buffers, from the same draws."""
    torch.manual_seed(0)
    plain, x = Layers(run), torch.randn(4, 6)
    model = Layers(run)
    model.load_state_dict(plain.state_dict())
    pc = pccompile.compile(model, (x.clone().requires_grad_(learns),))
    results = []
    for called, own in ((plain, plain), (pc, model)):
        for call in range(calls):
            leaf = (x + call).requires_grad_(learns)
            torch.manual_seed(1)
            output = called(leaf)
            (output * torch.arange(24.0).reshape(4, 6)).sum().backward()
        results.append([output.detach(), leaf.grad, *(p.grad for p in own.parameters()), *own.buffers()])
    for expected, found in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


CHECKPOINTS: dict[str, Callable[..., Any]] = {
    "plain": lambda m, x: m.b(again(m.a, x * 1)),
    "nothing requires a gradient": lambda m, x: m.b(again(m.a, x.detach())),
    "nested": lambda m, x: m.b(again(lambda h: again(m.a, h * 2).tanh(), x * 1)),
    "several results": lambda m, x: torch.mul(*again(lambda h: (m.a(h), m.b(h)), x * 1)),
    "no_grad inside": lambda m, x: m.b(again(lambda z: _still(m.a, z) * z, x * 1)),
    "a tuple of tensors": lambda m, x: m.b(again(lambda hs: m.a(hs[0]), (x * 1, x))),
    "a dict returned": lambda m, x: m.b(again(lambda h: {"a": m.a(h)}, x * 1)["a"]),
    "flags": lambda m, x: m.b(again(lambda h, flag, none: m.a(h) if flag else h, x * 1, True, None)),
    "without the random state": lambda m, x: m.b(again(m.a, x * 1, preserve_rng_state=False)),
    "in sequence": lambda m, x: checkpoint_sequential(nn.Sequential(m.a, m.b), 2, x * 1, use_reentrant=True),
    "an exit before it": lambda m, x: m.b(again(m.a, x * 1)) + m.b(x),
}


def _still(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("learns", [False, True], ids=["plain input", "input with gradient"])
@pytest.mark.parametrize("run", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_reentrant_checkpoint_learns_as_in_eager_torch(run: Callable[..., Any], learns: bool) -> None:
    compare(lambda m, x: run(m, x) + m.b(x), learns)


def test_a_checkpoint_is_captured_anew_where_an_input_takes_a_gradient() -> None:
    model = Layers(lambda m, x: m.b(again(m.a, x)))
    pc = pccompile.compile(model, (torch.randn(4, 6),))
    pc(torch.randn(4, 6)).sum().backward()
    assert model.a.weight.grad is None
    pc(torch.randn(4, 6).requires_grad_()).sum().backward()
    assert model.a.weight.grad is not None


SAMPLES: dict[str, Callable[..., Any]] = {
    "beta": lambda m, x: D.Beta(m.a(x).exp(), m.b(x).exp()).rsample(),
    "gamma": lambda m, x: D.Gamma(m.a(x).exp(), m.b(x).exp()).rsample(),
    "dirichlet": lambda m, x: D.Dirichlet(m.a(x).exp()).rsample(),
    "student": lambda m, x: D.StudentT(m.a(x).exp() + 2, m.b(x), m.b(x).exp()).rsample(),
    "chi2": lambda m, x: D.Chi2(m.a(x).exp()).rsample(),
    "normal": lambda m, x: D.Normal(m.a(x), m.b(x).exp()).rsample(),
    "relaxed": lambda m, x: D.RelaxedBernoulli(torch.tensor(0.5), logits=m.a(x)).rsample(),
    "poisson": lambda m, x: m.b(torch.poisson(m.a(x).exp())),
}


@pytest.mark.parametrize("run", SAMPLES.values(), ids=SAMPLES)
def test_a_sample_has_the_derivative_of_its_draw(run: Callable[..., Any]) -> None:
    compare(run)


def test_strict_inference_refuses_samples_that_it_would_draw_anew() -> None:
    with pytest.raises(CompileError, match="standard_gamma draws a sample"):
        pccompile.compile(Layers(SAMPLES["gamma"]), (torch.randn(4, 6),), algorithm="strict")


def per_channel(m: Layers, x: Tensor) -> Tensor:
    scales = torch.linspace(0.1, 0.2, 6)
    return torch.fake_quantize_per_channel_affine(m.a(x), scales, torch.zeros(6, dtype=torch.int32), 1, -8, 7)


QUANTISED: dict[str, Callable[..., Any]] = {
    "per tensor": lambda m, x: torch.fake_quantize_per_tensor_affine(m.a(x), 0.1, 0, -8, 7),
    "by tensors": lambda m, x: torch.fake_quantize_per_tensor_affine(m.a(x), torch.tensor(0.1), torch.tensor(0), -8, 7),
    "per channel": per_channel,
    "learnt": lambda m, x: torch._fake_quantize_learnable_per_tensor_affine(m.a(x), m.scale, m.zero, -8, 7, 1.0),
}


@pytest.mark.parametrize("run", QUANTISED.values(), ids=QUANTISED)
def test_fake_quantisation_sends_errors_straight_through(run: Callable[..., Any]) -> None:
    compare(run)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_moves_running_statistics_once_a_call(reentrant: bool) -> None:
    """As without it: torch moves them again when backward computes the region anew."""

    def within(m: Any, x: Tensor) -> Tensor:
        return m.b(checkpoint(lambda h: m.norm(m.a(h)).tanh(), x * 1, use_reentrant=reentrant))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    plain, model, x = Layers(lambda m, x: m.b(m.norm(m.a(x * 1)).tanh())), Layers(within), torch.randn(4, 6)
    model.load_state_dict(plain.state_dict())
    for called in (plain, pccompile.compile(model, (x.clone().requires_grad_(),))):
        for _ in range(2):
            called(x.clone().requires_grad_()).sum().backward()
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_statistics_that_are_averages_over_all_batches() -> None:
    compare(lambda m, x: m.norm(m.a(x)), calls=3)
