"""Complex parameters, inputs and values: gradients in torch's convention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.models import half_squares
from torch import Tensor, nn

import pccompile

Use = Callable[[Tensor, Tensor, Tensor], Tensor]


class Complex(nn.Module):
    """A complex matrix `w`, a real vector `r` and what `use` makes of them and the input."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.w, self.r = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128)), nn.Parameter(torch.rand(4).double())
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.w, self.r, x)


def rotated(w: Tensor, r: Tensor, x: Tensor) -> Tensor:
    """A rotary embedding."""
    turned = torch.view_as_complex(x.real.contiguous().view(-1, 2, 2)) * torch.polar(torch.ones(2).double(), r[:2])
    return torch.view_as_real(turned).flatten(1) * r


USES: dict[str, Use] = {
    "linear": lambda w, r, x: torch.tanh(x @ w) * r,
    "conjugate": lambda w, r, x: (x @ w.mH) * (x @ w.conj()) + r,
    "real_and_imaginary": lambda w, r, x: (x @ w).real * r + (x @ w).imag.sin(),
    "absolute": lambda w, r, x: (x @ w).abs().softmax(-1) * (x @ w).angle(),
    "fourier": lambda w, r, x: torch.fft.fft(x @ w * r).abs().square(),
    "quotient": lambda w, r, x: torch.exp(x * r) / (x @ w),
    "made_of_parts": lambda w, r, x: torch.complex((x @ w).real * r, x.imag) * (1 + 2j),
    "solved": lambda w, r, x: torch.linalg.solve(w, (x * r).mT),
    "rotated": rotated,
    "from_a_spectrogram": lambda w, r, x: torch.istft((w @ x.mT)[:3], 4, 2, window=1 + r.detach(), center=True),
}


@pytest.mark.quick(12)
@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
@pytest.mark.parametrize("name", USES)
def test_gradients_are_those_of_autograd(name: str, algorithm: str) -> None:
    make: Callable[[], nn.Module] = lambda: Complex(USES[name])  # noqa: E731
    torch.manual_seed(1)
    x, y = (torch.randn(3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    settings = {"rate": 1.0} if algorithm == "fixed-prediction" else {}
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    pc = pccompile.compile(make(), (x,), algorithm=algorithm, **settings)
    found, wanted = pc(x.requires_grad_()), plain(y.requires_grad_())
    torch.testing.assert_close(found, wanted)
    for out in (found, wanted):
        half_squares(torch.view_as_real(out) if out.is_complex() else out).backward()
    torch.testing.assert_close((pc.model.w.grad, pc.model.r.grad, x.grad), (plain.w.grad, plain.r.grad, y.grad))


def test_a_convolution() -> None:
    model = Complex(lambda w, r, x: torch.nn.functional.conv1d(x[:, None], w[:, None, :2]))
    x = torch.randn(3, 4, dtype=torch.complex128)
    pc = pccompile.compile(model, (x,))
    found, wanted = (torch.autograd.grad(torch.view_as_real(run(x)).square().sum(), [model.w]) for run in (pc, model))
    torch.testing.assert_close(found, wanted)
