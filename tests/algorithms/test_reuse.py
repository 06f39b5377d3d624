"""Loops that write each turn into the memory of the turn before: the same numbers, and no new tensor a turn."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms.nets import Problem, problem
from algorithms.programs import captured, gradients, program_of
from pccompile.backends.torch import emit, optimise
from pccompile.ir import Program

NORM = {"_native_batch_norm_legit": 3, "native_batch_norm_backward": 1}
LAYERS = {"clone": 8, "stack": 1, "bmm": 6, "addmm": 2, "relu": 1}
LEFT: dict[str, dict[str, int]] = {
    "cnn": {"convolution": 1, "convolution_backward": 1, **NORM},
    "transformer": {"native_layer_norm": 6, "native_layer_norm_backward": 2, **LAYERS},
}
"""The new tensors of a turn: of convolutions, of norms, with their statistics, and of products of more than two
dimensions."""


class NewMemory(TorchDispatchMode):
    """Counts the results that lie in memory that no argument of their operation lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in pytree.tree_leaves(result):
            if isinstance(t, Tensor) and t.numel() and t.untyped_storage().data_ptr() not in given:
                self.made[func.overloadpacket.__name__] += 1
        return result


def a_turn(program: Program, p: Problem) -> Counter[str]:
    """What a turn of inference makes anew, behind a loss that makes nothing."""
    scope: dict[str, Any] = {}
    exec(emit(program).text, scope)
    model = copy.deepcopy(p.model)
    params, buffers = {k: t.detach() for k, t in model.named_parameters()}, dict(model.named_buffers())
    outputs, context = scope["predict"](params, buffers, dict.fromkeys(program.pc.graph.inputs, p.x))
    error = torch.zeros_like(outputs[0])
    scope["clamp_errors"] = lambda outputs, *_: [error.copy_(outputs[0]).sub_(p.target).neg_()]
    made = []
    for steps in (12, 13):
        with NewMemory() as counted:
            scope["infer"](params, context, [p.target], steps=steps)
        made.append(counted.made)
    return made[1] - made[0]


def perceptron() -> nn.Module:
    layers = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    return nn.Sequential(*layers)


NETS: dict[str, Callable[[], Problem]] = {
    "perceptron": lambda: Problem(perceptron, (4, 5)),
    **{name: (lambda name=name: problem(name)) for name in ("gated", "dag", "cnn", "transformer")},
}


@pytest.mark.parametrize("net", NETS)
def test_a_turn_makes_only_what_torch_cannot_write_into_memory(net: str) -> None:
    p = NETS[net]()
    program = program_of(captured(p), "strict", steps=12)
    made = a_turn(program, p)
    assert made == LEFT.get(net, {})
    with mock.patch.object(optimise, "reused", lambda f, pc: f):
        before, text = a_turn(program, p), emit(program).text
    assert sum(before.values()) >= sum(made.values()) + 5
    found, expected = (gradients(program, p, 0, 1, 12, text=t) for t in ("", text))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, expected, strict=True) for k in a)


FORMS: dict[str, dict[str, Any]] = {
    **{s: {"algorithm": "strict", "stepper": s} for s in ("heun", "adam")},
    "tolerance": {"algorithm": "strict", "tolerance": 1e-2},
    "relax": {"algorithm": "fixed-prediction", "lowering": "relax"},
    **{name: {"algorithm": name} for name in ("alm", "incremental", "nudged")},
}


@pytest.mark.parametrize("case", FORMS)
def test_other_loops_give_the_same_numbers(case: str) -> None:
    p = problem("gated")
    program = program_of(captured(p), **{"steps": 6, **FORMS[case]})
    with mock.patch.object(optimise, "reused", lambda f, pc: f):
        text = emit(program).text
    assert ("out=" in emit(program).text) > ("out=" in text)
    if case == "incremental":
        return
    found, expected = (gradients(program, p, 6, text=t) for t in ("", text))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, expected, strict=True) for k in a)


def test_loops_that_show_their_values_make_them_anew() -> None:
    p = problem("gated")
    assert "out=" not in emit(program_of(captured(p), "strict", steps=6), record=True).text.split("def learn")[0]


def test_functions_that_layers_share_make_their_own() -> None:
    layers = (m for _ in range(14) for m in (nn.Linear(5, 5), nn.Tanh()))
    p = Problem(lambda: nn.Sequential(*layers, nn.Linear(5, 3)), (4, 5))
    program = program_of(captured(p), "strict", steps=3, tolerance=1e-9)
    text = emit(program).text
    with mock.patch.object(optimise, "reused", lambda f, pc: f):
        plain = emit(program, outlining=None).text
    assert "out=" in text
    found, expected = (gradients(program, p, 3, text=t) for t in (text, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
