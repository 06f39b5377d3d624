"""Complex numbers in circuits: what moves them, or multiplies their matrices, is built; anything else is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import Case

import pccompile
from netlist.test_zoo import check
from pccompile.diagnostics import CompileError

CHOICE = torch.tensor([True, False, True, False])


class Spectra(nn.Module):
    """Fourier transforms of two linear layers, combined."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.combine = nn.Linear(4, 4), nn.Linear(4, 4), combine

    def forward(self, x: Tensor) -> Tensor:
        z, w = torch.fft.fft(self.first(x)), torch.fft.fft(self.second(x))
        return torch.view_as_real(self.combine(z, w))


BUILT = {
    "cat": lambda z, w: torch.cat([z, w], -1),
    "stack": lambda z, w: torch.stack([z, w], 1),
    "where": lambda z, w: torch.where(CHOICE, z, w),
    "moved": lambda z, w: z.t().flip(0).reshape(2, 6)[:, 1:],
    "product": lambda z, w: z @ w.t(),
}
REFUSED = {
    "added": lambda z, w: z + w,
    "product by entries": lambda z, w: z * w,
    "exp": lambda z, w: torch.exp(z),
    "sum": lambda z, w: z.sum(0, keepdim=True),
}


@pytest.mark.parametrize("combine", BUILT.values(), ids=BUILT)
def test_what_is_built_is_backpropagation(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    def inputs(generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (torch.randn(3, 4, generator=generator, dtype=dtype),)

    shape = torch.view_as_real(combine(*torch.zeros(2, 3, 4, dtype=torch.complex128))).shape
    check(Case("spectra", lambda: Spectra(combine), inputs, lambda y, t: (y - t).square().sum(),
               lambda generator, dtype: torch.randn(shape, generator=generator, dtype=dtype)))  # fmt: skip


@pytest.mark.parametrize("combine", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(CompileError, match="complex"):
        pccompile.compile(Spectra(combine), (torch.randn(3, 4),), backend="netlist")
