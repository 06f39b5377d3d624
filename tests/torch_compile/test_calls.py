"""Lengths, layouts, dtypes, aliases and modes that differ from call to call give eager's result under torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pccompile import CompileError

cut = torch._dynamo.graph_break


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    """Layers that the programs below share; `run` is the program."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.conv = nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3)
        self.register_buffer("kept", torch.zeros(4))
        self.alpha, self.mask, self.run = 0.5, torch.tensor([1.0, 0, 1, 1]), run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


X, Y, IMAGE = drawn(6, 4), drawn(6, 4).sin(), drawn(2, 3, 6, 6)
Calls = dict[str, Callable[[], tuple[Any, ...]]]
BATCHES: Calls = {str(n): lambda n=n: (X[:n],) for n in (6, 1, 0, 3, 2)}  # type: ignore[misc]
LAYOUTS: Calls = {
    "contiguous": lambda: (IMAGE,),
    "channels last": lambda: (IMAGE.to(memory_format=torch.channels_last),),
    "transposed": lambda: (IMAGE.transpose(2, 3),),
    "strided": lambda: (torch.cat((IMAGE, IMAGE), 3)[..., ::2],),
    "expanded": lambda: (IMAGE[:1].expand(2, 3, 6, 6),),
}
MATRICES: Calls = {
    "transposed": lambda: (X.t().contiguous().t(),),
    "contiguous": lambda: (X,),
    "strided": lambda: (torch.cat((X, Y), 1)[:, ::2],),
    "expanded": lambda: (X[:1].expand(6, 4),),
}
ALIASES: Calls = {
    "apart": lambda: (X * 1, Y * 1),
    "one tensor": lambda: (lambda t: (t, t))(X * 1),
    "a view": lambda: (lambda t: (t, t.view(6, 4)))(X * 1),
    "a part": lambda: (lambda t: (t, t[:3]))(X * 1),
}
DTYPES: Calls = {
    str(d): lambda d=d: ((3 * X).to(d),) for d in (torch.float32, torch.float64, torch.bfloat16, torch.long)
}  # type: ignore[misc]
ONCE: Calls = {"": lambda: (X,), "again": lambda: (X * 2,)}


def summed(m: Net, x: Tensor) -> Tensor:
    return torch.tanh(m.a(x)).sum(0) + F.softmax(m.b(x), 0).sum()


def convolved(m: Net, x: Tensor) -> Tensor:
    h = m.conv(x)
    return h.flatten(1).tanh() if h.is_contiguous() else h.flatten(1).sin()


def reshaped_and_written(m: Net, x: Tensor) -> Tensor:
    """A reshape that is a view for one layout and a copy for another."""
    h = m.a(x).t().reshape(-1) if x.is_contiguous() else m.a(x).reshape(-1)
    flat = x.t().reshape(-1)
    cut()
    h.mul_(flat.abs())
    cut()
    return m.b(h.view(6, 4))


def view_written(m: Net, x: Tensor) -> Tensor:
    h = m.a(x).view(-1)
    cut()
    h.add_(1)
    cut()
    return m.b(h.view(6, 4))


def two(m: Net, x: Tensor, y: Tensor) -> Tensor:
    n = len(y)
    return m.a(x)[:n] * m.b(y)


def cast(m: Net, x: Tensor) -> Tensor:
    return m.a(x.float()) * x.float().sum() + m.b(x.float()).to(x.dtype).float()


def cast_within(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.a(x)
        cut()
        h = m.b(h)
    return m.a(h.float())


def generated(m: Net, x: Tensor) -> Tensor:
    def each() -> Iterator[Tensor]:
        for i in range(3):
            cut()
            yield m.a(x) * i

    return sum(each())  # type: ignore[return-value]


def rescued(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    try:
        if h.sum() > -1e9:
            raise ValueError
        h = 2 * h
    except ValueError:
        h = m.b(h)
    return h


@torch.compiler.disable
def _disabled(m: Net, h: Tensor) -> Tensor:
    return m.b(h).tanh()


def partly_disabled(m: Net, x: Tensor) -> Tensor:
    return m.a(_disabled(m, m.a(x)))


def reentrant_checkpoint(m: Net, x: Tensor) -> Tensor:
    return m.b(checkpoint(lambda v: torch.tanh(m.a(v)), x, use_reentrant=True))


def checkpoint_with_a_break(m: Net, x: Tensor) -> Tensor:
    def part(v: Tensor) -> Tensor:
        h = torch.tanh(m.a(v))
        cut()
        return m.b(h)

    return checkpoint(part, x, use_reentrant=False)  # type: ignore[no-any-return]


def nested_results(m: Net, x: Tensor) -> dict[str, Any]:
    return {"a": m.a(x), "b": [m.b(x), 3, None], "x": x, "flat": x.view(-1)}


def plain_attribute(m: Net, x: Tensor) -> Tensor:
    return m.a(x) * m.mask


def inference_mode(m: Net, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = m.a(x)
    return m.b(x) * h.clone()


def gradient_within_none(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        with torch.enable_grad():
            h = m.a(x)
        k = m.b(h)
    return h * k


def parameter_written(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.weight.mul_(0.9)
    cut()
    return m.b(m.a(x))


def parameter_written_in_one_piece(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.weight.mul_(0.9)
    return m.b(m.a(x))


def data_written(m: Net, x: Tensor) -> Tensor:
    m.kept.data.add_(1)
    return m.a(x) * m.kept


def kept_in_the_module(m: Net, x: Tensor) -> Tensor:
    m.last = m.a(x)
    cut()
    return m.b(m.last)


def hook_after_a_break(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return m.b(h)


def gradient_of_a_part(m: Net, x: Tensor) -> Tensor:
    z = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m.a(z).tanh().sum(), z)
    return m.b(x) * slope


def rows(m: Net, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: m.a(row).tanh())(x)


def tangents(m: Net, x: Tensor) -> Any:
    return torch.func.jvp(lambda v: m.a(v).tanh(), (x,), (Y,))[1]


def picked(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    i = h.argmax(1)
    at = h.nonzero()
    return m.b(x)[torch.arange(len(x)), i] * m.b(h)[at[:, 0], at[:, 1]].sum(), i


PROGRAMS: dict[str, tuple[Callable[..., Any], Calls]] = {
    f.__name__: (f, calls)
    for calls, programs in (
        (BATCHES, (summed,)),
        (LAYOUTS, (convolved,)),
        (MATRICES, (reshaped_and_written,)),
        (ONCE, (view_written,)),
        (ALIASES, (two,)),
        (DTYPES, (cast,)),
        (ONCE, (cast_within, generated, rescued, partly_disabled, reentrant_checkpoint, checkpoint_with_a_break)),
        (ONCE, (nested_results, plain_attribute, inference_mode, gradient_within_none, parameter_written)),
        (
            ONCE,
            (parameter_written_in_one_piece, kept_in_the_module, data_written, hook_after_a_break, gradient_of_a_part),
        ),
        (ONCE, (rows, tangents, picked)),
    )
    for f in programs
}


def leaves(result: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]


def step(run: Callable[..., Any], m: Net, args: tuple[Any, ...]) -> dict[str, Any]:
    """What two backward passes through one call leave."""
    torch.manual_seed(5)
    m.zero_grad()
    learning = [a.is_floating_point() and not a._is_view() for a in args]
    args = tuple(a.detach().requires_grad_() if learns else a for a, learns in zip(args, learning, strict=True))
    result = leaves(run(*args))
    loss = sum((i + 1) * t.double().square().sum() for i, t in enumerate(result) if t.requires_grad)
    assert isinstance(loss, Tensor)
    loss.backward(retain_graph=True)
    first = {k: None if p.grad is None else p.grad.clone() for k, p in m.named_parameters()}
    loss.backward()
    return {
        "first": first,
        "twice": {k: p.grad for k, p in m.named_parameters()},
        "results": [t.detach() for t in result],
        "carries": [t.requires_grad for t in result],
        "arguments": [a.grad for a in args],
        "buffers": dict(m.named_buffers()),
        "values": [a.detach().clone() for a in args],
    }


@pytest.mark.quick(15)
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_call_gives_the_result_of_eager_torch(name: str) -> None:
    torch.manual_seed(0)
    run, calls = PROGRAMS[name]
    m = Net(run)
    compiled, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    close = {"rtol": 2e-2, "atol": 2e-2} if "cast" in name else {}
    for call in (*calls.values(), *calls.values()):
        torch.testing.assert_close(step(compiled, m, call()), step(eager, eager, call()), **close)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
def test_with_and_without_gradients(context: Callable[[], Any]) -> None:
    m = Net(summed)
    compiled, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    for around in (context, nullcontext, context, nullcontext):
        with around():
            results = compiled(X), eager(X)
        torch.testing.assert_close(*results)
        assert results[0].requires_grad == results[1].requires_grad


@pytest.mark.parametrize("name", ["a.weight", "b.bias"])
def test_parameters_are_frozen_and_freed(name: str) -> None:
    torch.manual_seed(0)
    m = Net(summed)
    compiled, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    for learns in (True, False, True, False):
        for model in (m, eager):
            model.get_parameter(name).requires_grad_(learns)
            model.get_parameter(name).grad = None
        torch.testing.assert_close(step(compiled, m, (X,)), step(eager, eager, (X,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_autocast_around_the_call(dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    m = Net(lambda m, x: m.b(torch.relu(m.a(x))))
    compiled, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    for kind in (dtype, None, torch.bfloat16):
        around = nullcontext() if kind is None else torch.autocast("cpu", dtype=kind)
        with around:
            results = compiled(X), eager(X)
        for model, result in zip((m, eager), results, strict=True):
            model.zero_grad()
            result.float().square().sum().backward()
        assert results[0].dtype == results[1].dtype
        torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(m.a.weight.grad, eager.a.weight.grad, rtol=5e-2, atol=5e-2)


def written_twice(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    first, flat = h[0], h.view(-1)
    cut()
    first.add_(1)
    flat.mul_(2)
    return m.b(h)


def gradient_with_a_graph(m: Net, x: Tensor) -> Tensor:
    z = x.detach().requires_grad_()
    return torch.autograd.grad(m.a(z).tanh().sum(), z, create_graph=True)[0]


@pytest.mark.parametrize(
    "run, words",
    [
        (written_twice, "is changed in place and shares memory with"),
        (gradient_with_a_graph, "differentiated twice"),
    ],
)
def test_what_is_refused_by_name(run: Callable[..., Any], words: str) -> None:
    with pytest.raises(CompileError, match=words):
        step(torch.compile(m := Net(run), backend="pccompile"), m, (X,))


LINEAR = {"outside_loss": "linearise"}
"""A loss that is taken of a compiled program's results, where inference would need it."""


@pytest.mark.parametrize("algorithm", ["exact", "strict"])
def test_more_forms_than_torch_compiles(algorithm: str) -> None:
    """Torch leaves the ninth form of a function to autograd, which only exact predictive coding equals."""
    torch.manual_seed(0)
    names = ("tanh", "sin", "cos", "relu", "sigmoid", "exp", "abs", "erf", "square", "atan")
    m = Net(lambda m, x: m.b(getattr(torch, m.kind)(m.a(x))))
    compiled, eager = (
        torch.compile(m, backend="pccompile", options={"algorithm": algorithm, **LINEAR}),
        copy.deepcopy(m),
    )
    for name in names[:7]:
        m.kind = eager.kind = name
        if algorithm == "exact":
            torch.testing.assert_close(step(compiled, m, (X,)), step(eager, eager, (X,)))
        else:
            step(compiled, m, (X,))
    for name in names[7:]:
        m.kind = eager.kind = name
        if algorithm == "exact":
            torch.testing.assert_close(step(compiled, m, (X,)), step(eager, eager, (X,)))
            continue
        with pytest.raises(CompileError, match="beyond which torch leaves it to autograd"):
            step(compiled, m, (X,))
        break
