"""Custom autograd Functions: which gradients their backward is given, which it is asked for, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import pccompile
from pccompile import CompileError


class Pair(torch.autograd.Function):
    """Two results; backward asks which of their gradients are there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Tensor:
        if a is None or b is None:
            return 11 * a if b is None else 5 * b
        return 2 * a + 7 * b


class Needs(torch.autograd.Function):
    """Backward asks which gradients are needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        to_x, to_w = ctx.needs_input_grad
        return g * w * (100 if to_w else 1) if to_x else None, (g * x).sum(0) * (10 if to_x else 3) if to_w else None


class Marked(torch.autograd.Function):
    """A result that takes no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = (x > 0).to(x.dtype)
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(mask)
        return x * mask, mask

    @staticmethod
    def backward(ctx: Any, g: Tensor, of_mask: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0] * 3 + of_mask


class Counted(torch.autograd.Function):
    """A number, None and a whole-numbered tensor among the results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Any, ...]:
        return x * 2, 7, None, x.argmax(1)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Tensor:
        return g * 3


class Once(torch.autograd.Function):
    """A backward that is not differentiated itself, of a value that is neither argument nor result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inner = x.sigmoid()
        ctx.save_for_backward(inner)
        ctx.twice = inner * 2
        return inner * 3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0] + ctx.twice


class Nested(torch.autograd.Function):
    """Other Functions in forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return Once.apply(x) * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * Once.apply(ctx.saved_tensors[0])


class Split(torch.autograd.Function):
    """A context that is set up apart, with a rule for vmap that nothing here asks for."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.factor = inputs[1]
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.saved_tensors[1] * ctx.factor, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, factor: float) -> Any:
        return x * factor, 0


class Itself(torch.autograd.Function):
    """An argument that is returned as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Listed(torch.autograd.Function):
    """A tensor in a list, which takes no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, others: list[Tensor]) -> Tensor:
        return x * others[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * 2, None


class Dropped(torch.autograd.Function):
    """A mask that is drawn in forward and read in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full_like(x, 0.5))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class Layer(nn.Module):
    """A layer, a weight and a frozen weight for the functions below."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.fc, self.w = nn.Linear(6, 5), nn.Parameter(torch.randn(5))
        self.frozen, self.run = nn.Parameter(torch.randn(5), requires_grad=False), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, self.fc(x), x)


RUNS: dict[str, Callable[..., Any]] = {
    "the second of two": lambda m, h, x: Pair.apply(h)[1],
    "the first of two": lambda m, h, x: Pair.apply(h)[0],
    "both": lambda m, h, x: sum(Pair.apply(h)),
    "one Function three times": lambda m, h, x: Pair.apply(h)[1] + Pair.apply(h * 2)[0] + sum(Pair.apply(h * 3)),
    "all needed": lambda m, h, x: Needs.apply(h, m.w),
    "an input": lambda m, h, x: Needs.apply(x[:, :5], m.w) + h,
    "a detached weight": lambda m, h, x: Needs.apply(h, m.w.detach()),
    "a detached value": lambda m, h, x: Needs.apply(h.detach(), m.w) + h,
    "a frozen weight": lambda m, h, x: Needs.apply(h, m.frozen),
    "an input and a frozen weight": lambda m, h, x: Needs.apply(x[:, :5], m.frozen) + h,
    "a marked result": lambda m, h, x: Marked.apply(h)[0] + Marked.apply(h)[1] * h,
    "results that are no tensors": lambda m, h, x: Counted.apply(h)[0] * Counted.apply(h)[1],
    "once differentiable": lambda m, h, x: Once.apply(h),
    "nested": lambda m, h, x: Nested.apply(h),
    "setup_context": lambda m, h, x: Split.apply(h, 2.0),
    "itself": lambda m, h, x: Itself.apply(h) + h * Itself.apply(m.w),
    "a list": lambda m, h, x: Listed.apply(h, [m.w]),
    "without gradient": lambda m, h, x: _still(h) * h,
    "a draw": lambda m, h, x: Dropped.apply(h),
}


def _still(h: Tensor) -> Tensor:
    with torch.no_grad():
        return Once.apply(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize("learns", [False, True], ids=["plain input", "input with gradient"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_backward_gets_what_it_gets_in_eager_torch(run: Callable[..., Any], learns: bool) -> None:
    torch.manual_seed(0)
    model, x = Layer(run).double(), torch.randn(4, 6, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    results = []
    for called in (model, pc):
        leaf = x.clone().requires_grad_(learns)
        model.zero_grad()
        torch.manual_seed(1)
        output = called(leaf)
        (output * torch.arange(20.0).reshape(4, 5)).sum().backward()
        results.append([output.detach(), leaf.grad, *(p.grad for p in model.parameters())])
    for expected, found in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


class Switch(torch.autograd.Function):
    """Backward reads a saved tensor where a gradient is not there, and only then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x.sin())
        return x * 2, x * 3

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Tensor:
        return ctx.saved_tensors[0] if a is None or b is None else a + b


def test_a_backward_that_reads_what_is_not_kept_for_a_part_of_its_results_is_refused_by_name() -> None:
    model = Layer(lambda m, h, x: Switch.apply(h))
    pc = pccompile.compile(model, (torch.randn(4, 6),))
    a, b = pc(torch.randn(4, 6))
    with pytest.raises(CompileError, match=r"Switch\.backward asks which gradients are there"):
        b.sum().backward()
    a, b = pc(torch.randn(4, 6))
    (a.sum() + b.sum()).backward()


double_and_triple = Pair.apply


def test_a_function_called_by_a_name_of_its_own_keeps_its_backward() -> None:
    model = Layer(lambda m, h, x: double_and_triple(h))
    x, found = torch.randn(4, 6), []
    for called in (model, pccompile.compile(model, (x,))):
        model.zero_grad()
        sum(t.square().sum() for t in called(x)).backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


class Scribbles(torch.autograd.Function):
    """Changes its argument in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 5


class InAList(torch.autograd.Function):
    """Returns a list."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> list[Tensor]:
        return [x * 2]

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return g[0]


@pytest.mark.parametrize(
    "run, words",
    [
        (lambda m, h, x: Scribbles.apply(h * 1), "changes its argument in place"),
        (lambda m, h, x: InAList.apply(h)[0] + h, "InAList.forward returns tensors in a list"),
    ],
)
def test_what_a_function_may_not_do_is_named(run: Callable[..., Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        pccompile.compile(Layer(run), (torch.randn(4, 6),))


def around(x: Tensor, w: Tensor) -> Tensor:
    """A Function that keeps tensors in a variable around it, and not in its context."""
    kept: Any = None

    class Around(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            nonlocal kept
            kept = {"x": x, "all": [w, x * w]}
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            w, product = kept["all"]
            return g * w * 2, (g * kept["x"] + product).sum(0)

    return Around.apply(x, w)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return around(around(x, self.w).sin(), self.v)


def test_a_function_may_keep_tensors_in_a_variable_around_it() -> None:
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))
    for _ in range(2):
        results = []
        for called in (model, pc):
            x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
            y = called(x)
            y.square().sum().backward()
            results.append([y.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
            model.zero_grad()
        torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)
