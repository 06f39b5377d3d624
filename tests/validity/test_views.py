"""Writes through views, strides and detached values, and reads after them: what eager torch has, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Written(nn.Module):
    """A layer whose output the functions below write into."""

    def __init__(self, run: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.run = nn.Linear(6, 6), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.fc(x) * 1.0, x)


def compare(run: Callable[[Tensor, Tensor], Any], x: Tensor | None = None) -> None:
    """Assert that a compiled model has eager's outputs and gradients."""
    torch.manual_seed(0)
    model = Written(run).double()
    x = torch.randn(4, 6, dtype=torch.float64) if x is None else x
    pc = pccompile.compile(model, (x,))
    weights = torch.randn(64, dtype=torch.float64)
    results = []
    for called in (model, pc):
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        output = called(leaf)
        (output.flatten() * weights[: output.numel()]).sum().backward()
        results.append([output.detach(), leaf.grad, *(p.grad for p in model.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def then(*writes: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A forward that writes, and then reads everything."""

    def run(h: Tensor, x: Tensor) -> Tensor:
        for write in writes:
            write(h, x)
        return h.tanh()

    return run


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "fill_diagonal": lambda h, x: h.fill_diagonal_(-2.0),
    "fill_diagonal of a transpose": lambda h, x: h.t().fill_diagonal_(-2.0),
    "as_strided": lambda h, x: h.as_strided((3,), (2,)).fill_(1.5),
    "as_strided with an offset": lambda h, x: h.as_strided((3, 2), (7, 1), 2).mul_(1.5),
    "as_strided of a transpose": lambda h, x: h.t().as_strided((3, 3), (6, 1)).mul_(2),
    "diagonal": lambda h, x: h.diagonal().copy_(x.sum(1)),
    "every second": lambda h, x: h[..., ::2].mul_(2),
    "unfold": lambda h, x: h.unfold(1, 2, 2).mul_(3),
    "narrow": lambda h, x: h.narrow(1, 2, 3).add_(x[:, :3]),
    "transpose": lambda h, x: h.t()[2:4].mul_(x.t()[2:4]),
    "mT": lambda h, x: h.mT.mul_(x.mT),
    "unflatten": lambda h, x: h.unflatten(1, (2, 3))[:, 1].exp_(),
    "complex": lambda h, x: torch.view_as_complex(h.view(4, 3, 2)).mul_(1j),
    "real part": lambda h, x: torch.view_as_complex(h.view(4, 3, 2)).real.mul_(2),
    "chained index": lambda h, x: h[1:][:, torch.tensor([0, 2])].copy_(x[1:, :2]),
    "index_put": lambda h, x: h.t()[1:].index_put_((torch.tensor([0, 2]), torch.tensor([1, 1])), x[0, :2]),
    "index_add": lambda h, x: h[1:].index_add_(0, torch.tensor([0, 0]), x[:2]),
    "squeeze": lambda h, x: h[None].squeeze(0)[1].mul_(2),
    "swapaxes": lambda h, x: h.swapaxes(0, 1)[1].add_(x[:, 1]),
    "masked_fill": lambda h, x: h[:, 1:4].masked_fill_(x[:, 1:4] > 0, 3.0),
    "atleast_3d": lambda h, x: torch.atleast_3d(h)[1].mul_(2),
    "ravel": lambda h, x: h.ravel()[::5].copy_(x[0, :5]),
    "movedim": lambda h, x: h.view(2, 2, 6).movedim(0, 2)[1].mul_(2),
    "put": lambda h, x: h.put_(torch.tensor([1, 7]), x[0, :2]),
    "tril": lambda h, x: h[:, :4].tril_(),
    "clamp": lambda h, x: h[:, ::3].clamp_(-0.1, 0.1),
    "scatter": lambda h, x: h[:, :3].scatter_(1, torch.tensor([[0], [1], [2], [0]]), x[:, :1]),
    "renorm": lambda h, x: h[:, 1:].renorm_(2, 0, 0.5),
    "lerp": lambda h, x: h[::2].lerp_(x[::2], 0.3),
    "detached": lambda h, x: h.detach().mul_(2),
    "part of detached": lambda h, x: h.detach()[:, 1:].mul_(2),
}


@pytest.mark.quick(15)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_through_a_view(write: Callable[[Tensor, Tensor], Any]) -> None:
    compare(then(write))


READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "detached before": lambda h, x: (h.detach(), h[:, 0].mul_(2))[0] * h,
    "view of detached before": lambda h, x: (h.detach().t()[1:], h[0].mul_(2))[0] * h.t()[1:],
    "piece of detached before": lambda h, x: (h.detach().split(3, 1)[1], h[:, 4].mul_(2))[0] * h[:, 3:],
    "view before": lambda h, x: (h.t(), h[0].copy_(x[0]))[0].tanh(),
    "as_strided": lambda h, x: h.as_strided((5, 4), (1, 2), 1).tanh(),
    "as_strided of a transpose": lambda h, x: h.t().as_strided((3, 3), (6, 1)).tanh(),
    "as_strided of a part": lambda h, x: h[1:].as_strided((3, 3), (6, 1)).tanh(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_after_a_write(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    compare(read)


@pytest.mark.quick(6)
@pytest.mark.parametrize("seed", range(12))
def test_chains_of_views_that_are_written_into(seed: int) -> None:
    """Random chains of views, then random writes, then a read of what is left."""
    views: list[Callable[[Tensor], Tensor]] = [
        *(lambda v: v.t(), lambda v: v[1:], lambda v: v[:, ::2], lambda v: v.flip(0), lambda v: v.narrow(0, 0, 2)),
        *(lambda v: v.unsqueeze(0).squeeze(0), lambda v: v.mT, lambda v: v[:, 1:], lambda v: v.view_as(v)),
    ]
    writes: list[Callable[[Tensor], Any]] = [
        *(lambda v: v.mul_(2), lambda v: v.add_(1), lambda v: v.sin_(), lambda v: v.fill_(0.5), lambda v: v.zero_()),
        *(lambda v: v.diagonal().mul_(3), lambda v: v[0].neg_(), lambda v: v.fill_diagonal_(1.0)),
    ]
    draw = random.Random(seed)
    plan = [([draw.choice(views) for _ in range(draw.randint(1, 3))], draw.choice(writes)) for _ in range(3)]

    def write(chain: list[Callable[[Tensor], Tensor]], last: Callable[[Tensor], Any]) -> Callable[..., Any]:
        def through(h: Tensor, x: Tensor) -> None:
            for step in chain:
                h = step(h) if min(h.shape) > 1 else h
            last(h)

        return through

    compare(then(*(write(*p) for p in plan)))


def _among_writes(h: Tensor, x: Tensor) -> Tensor:
    h.as_strided((3,), (2,)).mul_(1.5)
    y = torch.as_strided_scatter(h, x[0, :4].view(2, 2), (2, 2), (6, 1), 3)
    y.as_strided((2,), (7,), 1).copy_(x[1, :2])
    return h * y


SCATTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "apart": lambda h, x: torch.as_strided_scatter(h, x[:2, :2], (2, 2), (7, 2)),
    "overlapping": lambda h, x: torch.as_strided_scatter(h, x[:3, :4], (3, 4), (1, 2), 4),
    "named": lambda h, x: torch.as_strided_scatter(input=h, src=h[0, :2], size=(2,), stride=(6,), storage_offset=1),
    "of a function": lambda h, x: torch.as_strided_scatter(h.exp(), h[1:3].tanh(), (2, 6), (6, 1), 6),
    "infinities": lambda h, x: torch.as_strided_scatter(h, torch.full_like(x[0], torch.inf), (6,), (1,)).sigmoid(),
    "among writes": _among_writes,
}


@pytest.mark.parametrize("run", SCATTERS.values(), ids=SCATTERS)
def test_a_scatter_at_strides_has_the_derivative_that_autograd_has_for_it(run: Callable[..., Tensor]) -> None:
    compare(run)


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "between entries": (lambda h, x: h[:, 1:3].as_strided((3, 3), (6, 1)), "as_strided reads memory between"),
    "before entries": (lambda h, x: h[1:].as_strided((3, 3), (6, 1), 0), "as_strided reads memory between"),
    "view of einsum": (lambda h, x: (torch.einsum("ij->ji", h)[1].mul_(2), h)[1], "returns as a view"),
}


@pytest.mark.parametrize("run, words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_named(run: Callable[[Tensor, Tensor], Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        pccompile.compile(Written(run), (torch.randn(4, 6),))


def test_an_input_that_lies_in_another_order_is_read_in_that_order() -> None:
    model = Written(lambda h, x: h[:3, :3] * x.as_strided((3, 3), (6, 1)))
    x = torch.randn(4, 6)
    pc = pccompile.compile(model, (x,))
    turned = x.t().contiguous().t()
    torch.testing.assert_close(pc(x), model(x))
    torch.testing.assert_close(pc(turned), model(turned))


@pytest.mark.parametrize("offset", [None, 0, 2, 7])
def test_what_is_counted_from_the_start_of_an_input_s_memory_is_never_read_elsewhere(offset: int | None) -> None:
    """Where the input is a part of another tensor, autograd's values or a refusal."""

    class Placed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.as_strided((2, 2), (1, 2), offset) * self.weight

    model = Placed(1, 1).double()
    memory = torch.randn(20, dtype=torch.float64)
    pc = pccompile.compile(model, (memory[:12].clone(),))
    refused = []
    for start in (0, 2, 3):
        x = memory[start : start + 12]
        try:
            torch.testing.assert_close(pc(x), model(x))
        except CompileError as error:
            refused.append((start, str(error)))
    assert all(start and ("as_strided" in line or "differ from eager torch" in line) for start, line in refused)
    assert offset is not None or not refused
