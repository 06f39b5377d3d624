"""What is written through detached values, with a gradient and without: eager torch's results, or a refusal by name."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


class Detached(nn.Module):
    """Two layers and a buffer. The functions below write what the second gives into what the first gives."""

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.run = nn.Linear(6, 6), nn.Linear(6, 6), run
        self.register_buffer("mean", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.first(x) * 1.0, self.second(x), x, self.mean)


def results(run: nn.Module, model: Detached, x: Tensor) -> list[Tensor | None]:
    """The output, the buffer, and the gradients of the input and of all parameters."""
    leaf = x.clone().requires_grad_()
    output = run(leaf)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    (output * weights).sum().backward()
    return [output.detach(), model.mean.clone(), leaf.grad, *(p.grad for p in model.parameters())]


def compare(run: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], tolerance: float = 1e-10) -> None:
    """Assert that a compiled model has eager's results; a gradient may be missing where eager's is 0."""
    torch.manual_seed(0)
    model, x = Detached(run).double(), torch.randn(4, 6, dtype=torch.float64)
    eager = copy.deepcopy(model)
    expected = results(eager, eager, x)
    found = results(pccompile.compile(model, (x,)), model, x)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is None or theirs is None:
            assert ours is None
            assert theirs is None or not theirs.any()
            continue
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def whole(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d += y
    return d * h


def column(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d[:, 1] = y[:, 0]
    return d.tanh() + d * h


def only_reader(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d[:, 1] = y[:, 0]
    return d.tanh() + d


def made_by_views(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = (h * 2).view(2, 2, 6).view(4, 6).detach()
    d += y
    d.mul_(2)
    return d + h


def part(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()[:, 1:3]
    d *= y[:, :2]
    return d.sin().sum() + (h * h.detach())


def beside_another(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d, e = h.detach(), h.detach()
    d += y
    return d * h * e


def two(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d, e = h.detach(), h.detach()
    d += y
    e *= y
    return d * h * e


def twice(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d += y
    e = d.detach()
    e *= x
    return d * h * e


def twice_and_back(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    e = d.detach()
    e *= y
    d.sin_()
    return d * h * e


def source_changes(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    with torch.no_grad():
        h.mul_(2)
    d += y
    with torch.no_grad():
        h[:, 1].mul_(3)
    return d * h


def source_changes_with_gradient(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.data
    d.add_(y)
    h.mul_(2)
    return d * h


def columns(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h[:, 1:4].detach()
    d += y[:, :3]
    return d * h[:, :3]


def every_second(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h[:, ::2].detach()
    d.t()[0] += y[:, 0]
    return d * h[:, ::2]


def viewed(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach().view(2, 2, 6)
    d[1] += y[:2]
    return d.reshape(4, 6) * h


def transposed(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.t().detach()
    d += y.t()
    return d.t() * h


def view_of_source(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    v, d = h[:, 0], h.detach()
    d += y
    return v[:, None] * d


def running_mean(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    mean.detach().mul_(0.9).add_(y.mean(0))
    return h * mean


def buffer(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = mean.detach()
    d += y.mean(0)
    return h * d + mean


def masked(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d[d > 0] = y[0, 0]
    return d * h


def by_itself(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    d.mul_(d)
    return d * h + y


def step_by_step(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.detach()
    for i in range(3):
        d[:, i] = (d.clone() * y)[:, i]
    return d + h


def part_without_gradient(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    with torch.no_grad():
        h[1:].clamp_(min=0.0)
        h[:, 0].copy_(x[:, 1].float())
    h.detach()[:, 3:].mul_(2)
    return h.tanh() + y


def of_another_type(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    d = h.float().detach()
    d *= y
    e = h.detach()
    e[1:] += d[1:]
    return d * h * e


def complex_without_gradient(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    with torch.no_grad():
        z = torch.view_as_complex(y.view(4, 3, 2)) * 2
    return (z * torch.view_as_complex(h.view(4, 3, 2))).abs()


def written_complex_without_gradient(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    z = torch.view_as_complex(h.view(4, 3, 2)).clone()
    with torch.no_grad():
        z.mul_(torch.view_as_complex(y.view(4, 3, 2)))
    return z.abs()


def complex_detached(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    z = torch.view_as_complex(h.view(4, 3, 2)).clone()
    d = z.detach()
    d *= torch.view_as_complex(y.view(4, 3, 2))
    return d.abs() * z.abs()


PROGRAMS = (
    *(whole, column, only_reader, made_by_views, part, beside_another, two, twice, twice_and_back, source_changes),
    *(source_changes_with_gradient, columns, every_second, viewed, transposed, view_of_source, running_mean, buffer),
    *(masked, by_itself, step_by_step, part_without_gradient),
    *(complex_without_gradient, written_complex_without_gradient, complex_detached),
)


@pytest.mark.quick(7)
@pytest.mark.parametrize("run", PROGRAMS, ids=lambda run: run.__name__)
def test_what_is_written_through_a_detached_value(run: Callable[..., Tensor]) -> None:
    compare(run)


def test_what_is_written_into_a_narrower_type() -> None:
    compare(of_another_type, tolerance=1e-6)  # eager torch multiplies the gradient in float32


@pytest.mark.quick(3)
@pytest.mark.parametrize("seed", range(40))
def test_random_writes_into_values_that_share_memory(seed: int) -> None:
    """Values detached from each other, views of them, writes with and without gradients, and a read of all of them."""
    draw = random.Random(seed)
    views: list[Callable[[Tensor], Tensor]] = [
        *(lambda v: v[1:], lambda v: v[:, ::2], lambda v: v.t(), lambda v: v.unsqueeze(0).squeeze(0), lambda v: v),
    ]
    writes: list[Callable[[Tensor, Tensor], Any]] = [
        *(lambda v, y: v.mul_(y), lambda v, y: v.add_(y), lambda v, y: v.sin_(), lambda v, y: v.copy_(y)),
        *(lambda v, y: v.mul_(0.5), lambda v, y: v[0].copy_(y[0])),
    ]
    plan = [
        (draw.choice(("detach", "write", "write", "quiet")), draw.random(), draw.choice(views), draw.choice(writes))
        for _ in range(6)
    ]

    def run(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        values = [h, h.detach()]
        for kind, which, view, write in plan:
            value = values[int(which * len(values))]
            if kind == "detach":
                values.append(view(value.detach()) if view(value).shape == value.shape else value.detach())
                continue
            with torch.set_grad_enabled(kind == "write"):
                write(view(value), view(y) if value.requires_grad or kind == "write" else view(x))
        return torch.stack([v * (i + 1.5) for i, v in enumerate(values)]).tanh()

    try:
        probe = Detached(run).double()
        probe(torch.ones(4, 6, dtype=torch.float64)).sum().backward()
    except RuntimeError as e:
        pytest.skip(f"eager torch refuses it: {str(e)[:60]}")
    compare(run)


def test_a_copy_that_was_a_view_is_named() -> None:
    def copied(h: Tensor, y: Tensor, x: Tensor, mean: Tensor) -> Tensor:
        d = h[:, 1:4].detach()
        flat = d.reshape(12)
        d += y[:, :3]
        return flat * d.flatten()

    with pytest.raises(CompileError, match=r"aten.reshape.default of a detached value that is changed in place"):
        pccompile.compile(Detached(copied), (torch.randn(4, 6),))
