"""Numbers beyond 64 bits, infinities and signed zeros; batches of one and of none; matrices in columns."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

LOWEST = torch.finfo(torch.float32).min


class Headed(nn.Module):
    """A layer, and what follows it."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.run = nn.Linear(3, 1), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.fc(x))


def agree(model: nn.Module, pc: nn.Module, x: Tensor) -> None:
    """Assert that both return the same and have the same gradients, nan where the other has nan."""
    results = []
    for called in (model, pc):
        model.zero_grad()
        output = called(x)
        output.sum().backward()
        results.append([output.detach(), *(p.grad for p in model.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp to the lowest number": lambda h: h.clamp(min=LOWEST, max=1e20),
    "clamp to infinity": lambda h: h.clamp(min=-math.inf, max=math.inf),
    "clamp to nan": lambda h: h.clamp(max=math.nan),
    "addcmul": lambda h: torch.addcmul(h, h, h, value=1e20),
    "copysign of minus zero": lambda h: torch.copysign(h, -0.0),
    "over minus zero": lambda h: h / -0.0,
    "over zero": lambda h: (h / 0.0).nan_to_num(posinf=1e20, neginf=-1e20),
    "times infinity": lambda h: h * math.inf,
    "plus nan": lambda h: h + math.nan,
    "masked_fill": lambda h: h.masked_fill(h > 0, LOWEST),
    "masked by minus infinity": lambda h: h.masked_fill(h > 0, -math.inf).softmax(0),
    "compared": lambda h: torch.where(h > 1e20, h, h * 2),
    "threshold": lambda h: F.threshold(h, 0.0, -1e20),
    "plus 2 to the 63rd": lambda h: h + 2.0**63,
    "wide whole numbers": lambda h: h * torch.full((1,), 2**63 + 5, dtype=torch.uint64).float(),
}


@pytest.mark.parametrize("run", NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_are_no_small_whole_ones(run: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Headed(run), torch.randn(4, 3)
    agree(model, pccompile.compile(model, (x,)), x)


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze": lambda h: h.squeeze() * 2,
    "deviation": lambda h: h + h.std(0),
    "variance": lambda h: h.var(0),
    "deviation and mean": lambda h: torch.stack(torch.std_mean(h, 0)),
    "two degrees of freedom": lambda h: h.std(0, correction=2),
    "softmax": lambda h: h.softmax(0) * h,
    "a branch on the batch": lambda h: h * 2 if h.shape[0] == 1 else h * 3,
    "a branch on no batch": lambda h: h.sum() if h.shape[0] == 0 else h.mean(),
    "product": lambda h: h.prod(0),
    "differences": lambda h: h.diff(dim=0),
}


@pytest.mark.parametrize(
    "run",
    [lambda h: h * True, lambda h: h / True + False, lambda h: h**True, lambda h: (h + True).tanh() * False],
)
def test_truth_values_among_the_numbers(run: Callable[[Tensor], Tensor]) -> None:
    model, x = Headed(run), torch.randn(4, 3)
    agree(model, pccompile.compile(model, (x,)), x)


@pytest.mark.parametrize("run", SIZES.values(), ids=SIZES)
def test_a_batch_of_one_or_none_after_one_of_four(run: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Headed(run)
    pc = pccompile.compile(model, (torch.randn(4, 3),))
    for count in (4, 1, 0, 2):
        agree(model, pc, torch.randn(count, 3))


@pytest.mark.parametrize(
    "norm, shape",
    [(nn.BatchNorm1d(5), (4, 5)), (nn.BatchNorm2d(5), (4, 5, 1, 1)), (nn.GroupNorm(5, 5), (4, 5))],
    ids=["BatchNorm1d", "BatchNorm2d", "GroupNorm"],
)
def test_a_norm_of_one_value_raises_what_eager_torch_raises(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(norm)
    pc = pccompile.compile(model, (torch.randn(shape),))
    before = [b.clone() for b in model.buffers()]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        pc(torch.randn(1, *shape[1:]))
    assert all(map(torch.equal, model.buffers(), before))


class Mixed(nn.Module):
    """A matrix whose determinant is taken."""

    def __init__(self, matrix: Tensor, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix, self.run = nn.Parameter(matrix), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.matrix) * x


@pytest.mark.parametrize("layout", [lambda m: m, lambda m: m.t().contiguous().t()], ids=["rows", "columns"])
@pytest.mark.parametrize(
    "run",
    [
        *(torch.det, torch.logdet, lambda m: torch.linalg.slogdet(m)[1], lambda m: torch.linalg.inv(m).sum()),
        *(lambda m: torch.linalg.cholesky(m @ m.t()).sum(), lambda m: torch.linalg.solve(m, m.t()).sum()),
        *(lambda m: m.prod(), lambda m: m.cumprod(0).sum(), lambda m: torch.linalg.qr(m).R.abs().sum(), torch.norm),
    ],
    ids=["det", "logdet", "slogdet", "inv", "cholesky", "solve", "prod", "cumprod", "qr", "norm"],
)
def test_a_matrix_that_lies_in_rows_or_in_columns(
    run: Callable[[Tensor], Tensor], layout: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(4, 4, dtype=torch.float64)
    matrix = matrix if torch.det(matrix) > 0 else matrix[[1, 0, 2, 3]]
    model = Mixed(layout(matrix), run)
    agree(model, pccompile.compile(model, (torch.ones(3, dtype=torch.float64),)), torch.ones(3, dtype=torch.float64))
