"""Forward hooks of a compiled model: those that look on run at each call as in eager torch, the others are traced."""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import half_squares, seeded
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

import pccompile
from pccompile import CompileError


class Net(nn.Module):
    """Two layers and an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Recorder:
    """A hook that is an object."""

    def __init__(self, store: Any) -> None:
        self.store, self.calls = store, 0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.calls += 1
        self.store.append((self.calls, output.detach().clone()))

    def method(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.store.append(output.mean().item())


Register = Callable[[Any, list[Any]], Any]
OBSERVERS: dict[str, Register] = {
    "lambda": lambda m, s: m.fc1.register_forward_hook(lambda module, args, output: s.append(output.detach().clone())),
    "stored": lambda m, s: m.fc2.register_forward_hook(lambda module, args, output: s.append(output)),
    "before_a_write": lambda m, s: m.fc1.register_forward_hook(lambda module, args, output: s.append(output)),
    "mean": lambda m, s: m.fc1.register_forward_hook(lambda module, args, output: s.append(output.mean().item())),
    "numpy": lambda m, s: m.act.register_forward_hook(lambda module, args, output: s.append(output.numpy(force=True))),
    "pre": lambda m, s: m.fc2.register_forward_pre_hook(lambda module, args: s.append(args[0].detach().clone())),
    "kwargs": lambda m, s: m.fc2.register_forward_hook(
        lambda module, args, kwargs, output: s.append((len(kwargs), output.detach().clone())), with_kwargs=True
    ),
    "always": lambda m, s: m.fc2.register_forward_hook(
        lambda module, args, output: s.append(output.shape), always_call=True
    ),
    "root": lambda m, s: m.register_forward_hook(lambda module, args, output: s.append((args[0], output.detach()))),
    "root_pre": lambda m, s: m.register_forward_pre_hook(lambda module, args: s.append(args[0].sum())),
    "object": lambda m, s: m.act.register_forward_hook(Recorder(s)),
    "method": lambda m, s: m.act.register_forward_hook(Recorder(s).method),
    "order": lambda m, s: [
        layer.register_forward_hook(lambda module, args, output, i=i: s.append((i, output.detach().clone())))
        for i, layer in enumerate((m, m.fc2, m.fc1))
    ],
    "module": lambda m, s: m.fc1.register_forward_hook(lambda module, *_: s.append(tuple(module.weight.shape))),
    "parameter": lambda m, s: m.fc1.register_forward_hook(lambda module, *_: s.append(module.weight.norm().item())),
}


def by_name(model: Any, store: list[Any]) -> None:
    """What recorders of activations do: a dictionary that is filled by name."""
    features: dict[str, Any] = defaultdict(list)
    store.append(features)

    def make(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            features[name] = output.detach().clone()
            features["count"].append(len(features))

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(make(name))


def on_the_module(model: Any, store: list[Any]) -> None:
    """An attribute that only the hook writes, read after the call."""
    store.append(model.fc1)

    def hook(module: Any, args: Any, output: Tensor) -> None:
        module.last = output.detach().clone()
        module.calls = getattr(module, "calls", 0) + 1

    model.fc1.register_forward_hook(hook)


OBSERVERS["by_name"] = by_name


def same(found: Any, expected: Any) -> None:
    a, b = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert not isinstance(x, FakeTensor)
        if isinstance(x, Tensor | float | np.ndarray):
            torch.testing.assert_close(x, y)
        else:
            assert x == y


STRICT = [(name, when, "strict") for name in ("lambda", "by_name", "root") for when in ("before", "after")]
EXACT = [(name, when, "exact") for name in OBSERVERS for when in ("before", "after")]


@pytest.mark.parametrize("name, when, algorithm", [*EXACT, *STRICT])
def test_hooks_that_look_on_see_what_they_see_in_eager(name: str, when: str, algorithm: str) -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    twin = copy.deepcopy(model)
    stores: tuple[list[Any], list[Any]] = [], []
    if when == "before":
        OBSERVERS[name](model, stores[0])
    pc = pccompile.compile(model, (x,), algorithm=algorithm)
    if when == "after":
        OBSERVERS[name](model, stores[0])
    OBSERVERS[name](twin, stores[1])
    for i in range(3):
        y = x + i
        if algorithm == "strict":
            pc.loss(y, target=torch.zeros(4, 2, dtype=torch.float64)).backward()
            twin(y)
            continue
        half_squares(pc(y)).backward()
        half_squares(twin(y)).backward()
    same(stores[0], stores[1])
    if algorithm == "exact":
        same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    captures = len(pc._cache.captures)
    pc(x) if algorithm == "exact" else None
    assert len(pc._cache.captures) == captures == 1 + (when == "after")


def test_an_attribute_that_only_a_hook_writes() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    twin = copy.deepcopy(model)
    on_the_module(model, [])
    on_the_module(twin, [])
    pc = pccompile.compile(model, (x,))
    for i in range(3):
        pc(x + i)
        twin(x + i)
    assert model.fc1.calls == twin.fc1.calls == 3
    same(model.fc1.last, twin.fc1.last)
    assert len(pc._cache.captures) == 1


def test_a_hook_that_prints_prints_at_each_call_and_not_while_compiling() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        print("saw", tuple(output.shape))

    model.fc1.register_forward_hook(hook)
    with redirect_stdout(io.StringIO()) as printed:
        pc = pccompile.compile(model, (x,))
    assert not printed.getvalue()
    with redirect_stdout(io.StringIO()) as printed:
        pc(x)
        pc(x)
    assert printed.getvalue() == "saw (4, 5)\n" * 2


def test_a_hook_that_changes_values_and_counts_does_both() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    twin = copy.deepcopy(model)
    counts: tuple[list[int], list[int]] = [], []

    def double(count: list[int]) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            count.append(len(count))
            return 2 * output

        return hook

    for m, count in zip((model, twin), counts, strict=True):
        m.fc1.register_forward_hook(double(count))
    pc = pccompile.compile(model, (x,))
    assert not counts[0]
    for _ in range(2):
        torch.testing.assert_close(pc(x), twin(x))
    assert counts[0] == counts[1] == [0, 1]


def test_a_steering_vector_is_read_where_it_stands() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    vector, strength = torch.ones(5, dtype=torch.float64), {"alpha": 1.0}
    model.fc1.register_forward_hook(lambda module, args, output: output + strength["alpha"] * vector)
    pc = pccompile.compile(model, (x,))
    torch.testing.assert_close(pc(x), model(x))
    vector.mul_(3)
    torch.testing.assert_close(pc(x), model(x))
    strength["alpha"] = 0.25
    torch.testing.assert_close(pc(x), model(x))


def test_removed_and_registered_again() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.sin(output)

    for _ in range(3):
        handle = model.fc1.register_forward_hook(hook)
        torch.testing.assert_close(pc(x), model(x))
        handle.remove()
        torch.testing.assert_close(pc(x), model(x))
    assert len(pc._cache.captures) == 2


def test_a_gradient_into_what_a_hook_kept_is_refused_by_name() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    kept: list[Tensor] = []

    def keep_features(module: nn.Module, args: Any, output: Tensor) -> None:
        kept.append(output)

    model.fc1.register_forward_hook(keep_features)
    pc = pccompile.compile(model, (x,))
    loss = half_squares(pc(x)) + kept[0].square().sum()
    with pytest.raises(CompileError, match=r"keep_features of fc1"):
        loss.backward()


@pytest.mark.parametrize("ask", [Tensor.retain_grad, lambda t: t.register_hook(lambda g: g)], ids=["retain", "hook"])
def test_a_hook_that_asks_for_gradients_is_refused_by_name(ask: Any) -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)

    def wants_gradient(module: nn.Module, args: Any, output: Tensor) -> None:
        ask(output)

    model.fc1.register_forward_hook(wants_gradient)
    with pytest.raises(CompileError, match=r"fc1|register_hook"):
        pccompile.compile(model, (x,))(x)


def test_global_hooks_that_look_on() -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    seen: list[Any] = []
    pc = pccompile.compile(model, (x,))
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        pc(x)
        by_program = list(seen)
        seen.clear()
        model(x)
    finally:
        handle.remove()
    assert by_program == [*seen, type(pc)]


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_are_refused_at_each_call_until_they_are_removed(kind: str) -> None:
    model, x = seeded(Net), torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,))

    def halve(module: nn.Module, *gradients: Any) -> None:
        return None

    handle = getattr(model.fc2, kind)(halve)
    for _ in range(2):
        with pytest.raises(CompileError, match=r"halve on fc2"):
            pc(x)
    handle.remove()
    torch.testing.assert_close(pc(x), model(x))
    assert len(pc._cache.captures) == 1
