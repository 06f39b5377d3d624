"""Calls that come again run at once what ran before, and nothing that decides otherwise is missed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.models import half_squares
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO

import pccompile
from pccompile import CompileError
from pccompile.frontends.snapshots import Snapshots

SCALE = 2.0


class Net(nn.Module):
    """Two layers, a number, a switch, a buffer and a global."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.factor = nn.Linear(4, 5), nn.Linear(5, 3), 2.0
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x)) * self.factor * SCALE * torch.full((), 1 / 3)
        h = h * 2 if self.training else h
        return self.second(h) + self.shift + (0 if y is None else y)


class Ready:
    """A compiled model one of whose calls is prepared, and how often a call went the ordinary way."""

    def __init__(self, **how: Any) -> None:
        torch.manual_seed(0)
        self.eager, self.x = Net(), torch.randn(6, 4)
        self.model = copy.deepcopy(self.eager)
        self.pc = pccompile.compile(self.model, (self.x,), **how)
        self.ordinary = 0

    def prepare(self, call: Callable[[], Any]) -> Ready:
        """Until `call` is known; from then on ordinary ones are counted."""
        for _ in range(3):
            call()
        assert len(self.pc._prepared) == 1
        find = self.pc._call

        def counted(*args: Any) -> Any:
            self.ordinary += 1
            return find(*args)

        self.pc.__dict__["_call"] = counted
        return self

    def both(self, *args: Any, **kwargs: Any) -> None:
        """Results and gradients are eager torch's."""
        results = [m(*args, **kwargs) for m in (self.eager, self.pc)]
        torch.testing.assert_close(results[1], results[0])
        if not results[0].requires_grad:
            return
        learning = [[p for p in m.parameters() if p.requires_grad] for m in (self.eager, self.model)]
        found = [torch.autograd.grad(half_squares(r), ps) for r, ps in zip(results, learning, strict=True)]
        torch.testing.assert_close(found[1], found[0])


class Quiet(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def wide() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def other_global() -> Iterator[None]:
    globals()["SCALE"] = 3.0
    yield
    globals()["SCALE"] = 2.0


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "function mode": Quiet,
    "default device": lambda: torch.device("cpu"),
    "default dtype": wide,
    "global": other_global,
}

CHANGES: dict[str, Callable[[Net], object]] = {
    "mode": lambda m: m.eval(),
    "number": lambda m: setattr(m, "factor", 1.0),
    "type of a number": lambda m: setattr(m, "factor", 2),
    "frozen": lambda m: m.first.weight.requires_grad_(False),
    "layer": lambda m: setattr(m, "second", nn.Linear(5, 3, bias=False)) or nn.init.ones_(m.second.weight),
    "parameter": lambda m: setattr(m.first, "weight", nn.Parameter(torch.ones(5, 4))),
    "data": lambda m: setattr(m.first.weight, "data", torch.ones(4, 5).t()),
    "buffer": lambda m: setattr(m, "shift", torch.zeros(1)),
    "hook": lambda m: m.first.register_forward_hook(lambda module, args, out: out * 2) and None,
    "method": lambda m: setattr(m, "forward", lambda x: m.second(m.first(x)[:, :5])),
    "dtype": lambda m: m.first.double() and m.first.float() and m.first.bias.data.fill_(1.0),
}


def test_a_call_that_comes_again_finds_its_program_at_once() -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x)).both(ready.x)
    with torch.no_grad():
        ready.eager.first.weight.mul_(2), ready.model.first.weight.mul_(2)
    ready.both(torch.randn(6, 4))
    with torch.no_grad():
        ready.both(ready.x)
    assert ready.ordinary == 0


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_surrounds_a_call_is_noticed(name: str) -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    with SURROUNDINGS[name]():
        ready.both(ready.x)
    assert ready.ordinary
    ready.both(ready.x)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_noticed(name: str) -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    for model in (ready.eager, ready.model):
        CHANGES[name](model)  # type: ignore[arg-type]
    ready.both(ready.x)
    assert ready.ordinary or name == "dtype"


def test_other_arguments_are_noticed() -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    y = torch.randn(6, 3)
    calls = [((ready.x[:2],), {}), ((ready.x.t().contiguous().t(),), {}), ((), {"x": ready.x}), ((ready.x, y), {})]
    calls += [((ready.x, None), {}), ((ready.x.clone().requires_grad_(),), {}), ((nn.Parameter(ready.x),), {})]
    for i, (args, kwargs) in enumerate(calls, 1):
        ready.both(*args, **kwargs)
        assert ready.ordinary >= i
    ready.model.double(), ready.eager.double()
    ready.both(ready.x.double())


def test_keyword_arguments_are_prepared_under_their_names() -> None:
    ready = Ready()
    y = torch.randn(6, 3)
    ready.prepare(lambda: ready.pc(ready.x, y=y))
    ready.both(ready.x, y=y)
    assert ready.ordinary == 0
    ready.both(ready.x, y)
    assert ready.ordinary


TRANSFORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "vmap": lambda pc, x: torch.func.vmap(lambda s: pc(x))(x),
    "grad": lambda pc, x: torch.func.grad(lambda s: pc(x).sum())(x),
    "jvp": lambda pc, x: torch.func.jvp(lambda s: pc(s), (x,), (x,)),
    "make_fx": lambda pc, x: make_fx(lambda s: pc(x) + s.sum())(x),
    "trace": lambda pc, x: torch.jit.trace(lambda s: pc(x) + s.sum(), (x,), check_trace=False),
    "twice": lambda pc, x: torch.autograd.grad(pc(x).sum(), [*pc.parameters()], create_graph=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused(name: str) -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    with pytest.raises(CompileError):
        TRANSFORMS[name](ready.pc, ready.x)


def test_tangents_and_modes_go_the_ordinary_way() -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    with forward_ad.dual_level(), pytest.raises(CompileError):
        ready.pc(forward_ad.make_dual(ready.x, ready.x))
    with Watching():
        ready.pc(ready.x)
    assert ready.ordinary == 2


def test_a_loss_that_changes_is_noticed() -> None:
    weights = {"mean": 1.0}
    loss = lambda out, y: weights["mean"] * (out - y).square().mean()  # noqa: E731
    ready, y = Ready(loss=loss), torch.randn(6, 3)
    ready.prepare(lambda: ready.pc.loss(ready.x, target=y))

    def both(target: Tensor) -> None:
        losses = [loss(ready.eager(ready.x), target), ready.pc.loss(ready.x, target=target)]
        grads = [
            torch.autograd.grad(v, [*m.parameters()]) for v, m in zip(losses, (ready.eager, ready.pc), strict=True)
        ]
        torch.testing.assert_close((losses[1], grads[1]), (losses[0], grads[0]))

    both(y + 1)
    assert ready.ordinary == 0
    weights["mean"] = 3.0
    both(y)
    assert ready.ordinary
    both(y[:1])
    with pytest.raises(CompileError, match="requires a gradient"):
        ready.pc.loss(ready.x, target=y.clone().requires_grad_())


def test_a_target_that_was_let_pass_without_gradients_is_refused_with_them() -> None:
    ready = Ready(loss=lambda out, y: (out - y).square().sum())
    target = torch.randn(6, 3, requires_grad=True)
    with torch.no_grad():
        for _ in range(3):
            ready.pc.loss(ready.x, target=target)
    with pytest.raises(CompileError, match="requires a gradient"):
        ready.pc.loss(ready.x, target=target)


def test_a_copy_prepares_calls_of_its_own() -> None:
    ready = Ready()
    ready.prepare(lambda: ready.pc(ready.x))
    del ready.pc.__dict__["_call"]
    twin = copy.deepcopy(ready.pc)
    assert not twin._prepared
    twin(ready.x), twin(ready.x).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    assert all(p.grad is None for p in ready.pc.parameters())


def test_what_the_backward_pass_does_not_read_may_change_before_it() -> None:
    """As in eager torch: a bias and the weight of a layer on data; a weight that errors go through may not."""
    ready = Ready()
    for name in ("first.weight", "first.bias", "second.bias"):
        outputs = [m(ready.x) for m in (ready.eager, ready.pc)]
        for model in (ready.eager, ready.model):
            with torch.no_grad():
                model.get_parameter(name).add_(1.0)
        grads = [
            torch.autograd.grad(half_squares(o), [*m.parameters()])
            for o, m in zip(outputs, (ready.eager, ready.model), strict=True)
        ]
        torch.testing.assert_close(grads[1], grads[0])
    output = ready.pc(ready.x)
    with torch.no_grad():
        ready.model.second.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("name", ["paper_cnn", "encoder", pytest.param("unrolled_lstm_50", marks=pytest.mark.slow)])
def test_a_file_says_which_parameters_its_backward_pass_reads(name: str) -> None:
    case, draw = ZOO[name], torch.Generator().manual_seed(0)
    pc = pccompile.compile(case.build(), case.inputs(draw, torch.float32), check=False)
    reads, source = pc.compiled.source.reads, ast.parse(pc.source)
    found = {
        n.slice.value
        for f in source.body
        if isinstance(f, ast.FunctionDef) and f.name in ("infer", "learn", "infer_and_learn")
        for n in ast.walk(f)
        if isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id == "params"
        if isinstance(n.slice, ast.Constant)
    }
    assert found <= reads
    assert reads < {k for k, _ in pc.named_parameters()}


WRITES: dict[str, Callable[[dict[str, Any]], object]] = {
    "set": lambda d: d.__setitem__("a", 2),
    "type": lambda d: d.__setitem__("a", True),
    "add": lambda d: d.__setitem__("b", 1),
    "update": lambda d: d.update(a=2),
    "union": lambda d: d.__ior__({"b": 1}),
    "default": lambda d: d.setdefault("b", 1),
    "pop": lambda d: d.pop("a"),
    "item": lambda d: d.popitem(),
    "clear": lambda d: d.clear(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_to_a_dictionary_is_noticed(write: Callable[[dict[str, Any]], object]) -> None:
    live: dict[str, Any] = {"c": 3, "a": 1}
    snapshots = Snapshots()
    snapshots.container(live, dict(live))
    assert snapshots.hold()
    assert snapshots.hold()
    write(live)
    assert not snapshots.hold()
    assert not snapshots.hold()
    live.clear()
    live.update(c=3, a=1)
    assert snapshots.hold()


def test_attributes_that_are_set_in_a_loop_are_noticed() -> None:
    """Python writes to these in a way of its own once a function has run often."""
    layer, snapshots = nn.Identity(), Snapshots()
    layer.width = 0
    snapshots.container(vars(layer), dict(vars(layer)))

    def write(value: int) -> None:
        layer.width = value

    for i in range(1, 60):
        write(i)
        assert not snapshots.hold()
        write(0)
        assert snapshots.hold()
