"""Values are overwritten where they lie: nobody else sees it, and a step takes no more memory than it needs."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pccompile
from algorithms.nets import Problem, squared
from algorithms.programs import captured, gradients, loops, plain, program_of
from pccompile import energy
from pccompile.backends.torch import emit
from pccompile.ir import Do, Program, Repeat, Update


class ViewFirst(nn.Module):
    """The first vertex is a view of the input, and so is what it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(-1, 6)
        return self.b(torch.tanh(self.a(h)) * h + h.t().t())


class TwoViews(nn.Module):
    """Two vertices that are views of one value, which has a third reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(3, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        left, right = h.chunk(2, 1)
        return self.b(left.contiguous() * right) + self.c(h.reshape(6, -1).reshape(-1, 6)) + left


class Expanded(nn.Module):
    """A vertex whose elements share memory: a parameter, expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.a = nn.Parameter(torch.linspace(-1, 1, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bias.expand(x.shape[0], 6)
        return self.a(torch.tanh(h * x) + h)


class Same(nn.Module):
    """Functions that return what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.atleast_2d(torch.conj_physical(self.a(x)))
        return self.b(torch.tanh(h.type_as(x)) + torch.dropout(h, 0.5, False).positive())


ALIASED = {"view": ViewFirst, "two views": TwoViews, "expanded": Expanded, "same": Same}
ALGORITHMS: dict[str, dict[str, Any]] = {
    **{s: {"algorithm": "strict", "stepper": s} for s in ("euler", "nesterov", "heun")},
    "alm": {"algorithm": "alm", "penalty": 2.0},
    "error-optimization": {"algorithm": "error-optimization"},
    "langevin": {"algorithm": "langevin", "temperature": 0.0, "burn_in": 2},
}


@pytest.mark.parametrize("net", ALIASED)
def test_values_that_share_memory(net: str) -> None:
    p = Problem(ALIASED[net], (4, 6))
    pc = p.compile("strict", granularity="op", steps=1).compiled.pc
    for how in ALGORITHMS.values():
        program = program_of(pc, **how)
        found, expected = gradients(program, p, 0, 3), gradients(program, p, 0, 3, text=plain(program))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("net", ALIASED)
def test_nothing_that_others_hold_is_written_to(net: str) -> None:
    """Inputs, targets, parameters and what earlier calls returned; also where a parameter is a view of the input."""
    p = Problem(ALIASED[net], (6, 6))
    pc = p.compile("strict", granularity="op", steps=4)
    memory = torch.randn(6, 6, dtype=torch.float64)
    with torch.no_grad():
        first = next(q for q in pc.parameters() if q.shape[-1] == 6)
        first.data = memory[: len(first)].t() if first.shape == (6, 6) else memory[0]
    held = [memory, p.target, *pc.parameters()]
    before = [t.detach().clone() for t in held]

    def call() -> tuple[Tensor, list[Tensor]]:
        output, loss = pc(memory), pc.loss(memory, target=p.target)
        return output.detach(), [*torch.autograd.grad(loss, [*pc.parameters()])]

    first_call = call()
    copies = first_call[0].clone(), [g.clone() for g in first_call[1]]
    with ThreadPoolExecutor(3) as pool:
        others = list(pool.map(lambda _: call(), range(4)))
    for output, found in (first_call, *others):
        assert torch.equal(output, copies[0])
        assert all(map(torch.equal, found, copies[1]))
    assert all(map(torch.equal, held, before))


def test_an_input_that_is_inferred_is_not_written_to() -> None:
    """Its value starts as the tensor that was given, which also is the value that is clamped elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), algorithm="strict", loss=squared, steps=6, check=False)
    before = x.clone()
    first = pc.settle(x, target=x, free={"input": energy("gaussian")})
    values = {v: first[v].clone() for v in ("input", "n1")}
    second = pc.settle(x + 1, target=x, free={"input": energy("gaussian")})
    assert torch.equal(x, before)
    assert all(torch.equal(first[v], values[v]) and not torch.equal(second[v], values[v]) for v in values)


# programs that no algorithm here has: loops in loops, and gradients that are handed on while they grow


def displaced(turn: tuple[Any, ...], p: Problem) -> Program:
    """Strict inference whose loop does `turn` after its own steps."""
    program = program_of(captured(p), "strict")
    (loop,) = loops(program)
    changed = replace(loop, body=(*loop.body, *turn), unmoved={})
    return replace(program, infer=tuple(changed if s is loop else s for s in program.infer))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def test_a_loop_within_a_loop_starts_anew() -> None:
    """What an inner loop starts from is computed once, before both: the inner loop may not write over it."""
    p = Problem(chain, (4, 5))
    names = [v.name for v in captured(p).latent]
    start = tuple(Do(v, "drift", "zero") for v in names)
    inner = Repeat("steps", tuple(Do(v, "drift", "drift + rate * (prediction - drift)") for v in names))
    moved = tuple(Do(v, "value", "value + 0.1 * drift") for v in names)
    program = displaced((*start, inner, *moved), p)
    assert ".lerp_(" in emit(program).text or ".add_(" in emit(program).text
    found, expected = gradients(program, p, 1, 3), gradients(program, p, 1, 3, text=plain(program))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_gradients_that_were_handed_on_stay_as_they_were() -> None:
    """An optimizer may keep what it is handed in one step while the sum grows in the next."""
    p = Problem(chain, (4, 5))
    pc = captured(p)
    grown = tuple(Do(n, "gradient", "gradient - 0.5 * pull", "value") for n in pc.graph.params)
    program = displaced((*grown, Update()), p)
    zero = tuple(Do(n, "gradient", "zero") for n in pc.graph.params)
    program = replace(program, infer=(*zero, *program.infer), learn=())
    kept: list[list[dict[str, Tensor]]] = []
    for text in (emit(program).text, plain(program)):
        scope: dict[str, Any] = {}
        exec(text, scope)
        model = copy.deepcopy(p.model)
        params = {k: t.detach() for k, t in model.named_parameters()}
        _, context = scope["predict"](params, {}, dict.fromkeys(pc.graph.inputs, p.x))
        kept.append([])
        scope["infer"](params, context, [p.target], steps=3, update=kept[-1].append)
    assert len(kept[0]) == 3
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-12, atol=1e-13)
    assert not torch.equal(kept[0][0]["0.weight"], kept[0][2]["0.weight"])


# memory


class Memory(TorchDispatchMode):
    """The bytes of tensors that are made and alive, at most, and how many operations made some."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most, self.made = 0, 0, 0
        self.known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs or {})
        storages = (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor))
        new = {s._cdata: s for s in storages if s._cdata not in given}
        for storage in new.values():
            self.alive += storage.nbytes()
            weakref.finalize(storage, self.free, storage.nbytes())
        self.most = max(self.most, self.alive)
        self.made += bool(new)
        return result

    def free(self, size: int) -> None:
        self.alive -= size


def traced(run: Callable[[], Any]) -> Memory:
    with Memory() as memory:
        result = run()
    del result
    return memory


def inference(text: str, p: Problem) -> Callable[[int], Any]:
    """What the file `text` settles in so many steps, the forward pass behind it."""
    scope: dict[str, Any] = {}
    exec(text, scope)
    params = {k: t.detach() for k, t in p.model.named_parameters()}
    _, context = scope["predict"](params, {}, {"input": p.x})
    return lambda steps: scope["infer"](params, context, [p.target], steps=steps)


def test_memory_is_that_of_values_errors_and_predictions_for_any_number_of_steps() -> None:
    layers = (m for n, k in ((40, 30), (30, 20)) for m in (nn.Linear(n, k), nn.ReLU()))
    model = nn.Sequential(*layers, nn.Linear(20, 3))
    p = Problem(lambda: model, (8, 40))
    program = program_of(captured(p), "strict")
    values, errors, float64 = 30 + 20, 30 + 20 + 3, 8
    made = {}
    for text in (emit(program).text, plain(program)):
        infer = inference(text, p)
        five, six, fifty = (traced(lambda n=n, infer=infer: infer(n)) for n in (5, 6, 50))
        assert five.most == six.most == fifty.most
        made[text] = six.made - five.made
        if text == emit(program).text:
            assert five.most <= 8 * float64 * (values + 2 * errors)
    assert made[emit(program).text] < made[plain(program)]
