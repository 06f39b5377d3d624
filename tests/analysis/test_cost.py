"""What is counted on programs, against torch's own counter on the generated code and on the model in eager torch."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from algorithms.nets import Problem, problem
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pccompile

PROGRAMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "zil": {},
    "fixed-prediction": {"lowering": "relax", "steps": 3},
    "meta-pcn": {"lowering": "exponentials", "steps": 40, "lowering_tolerance": 1e-2},
    "strict": {"steps": 3},
    "alm": {"steps": 2},
    "error-optimization": {"steps": 2},
    "nudged": {"steps": 2},
    "langevin": {"steps": 2, "burn_in": 3},
}
BY_TORCH = {  # of these, torch counts the variants that are not in place, and give a tensor of their own
    torch.ops.aten.linear: lambda x, w, *_, out_shape=None, **__: 2 * math.prod(x) * w[0],
    torch.ops.aten.addmm_: lambda a, x, y, *_, out_shape=None, **__: 2 * x[0] * x[1] * y[1],
    torch.ops.aten.baddbmm_: lambda a, x, y, *_, out_shape=None, **__: 2 * x[0] * x[1] * x[2] * y[2],
}


def counted(p: Problem, pc: pccompile.PCModule) -> int:
    """What torch counts while the generated functions run."""
    runtime = pc.prepare((p.x,), loss=pc.criterion, target=p.target)
    params, buffers = pc.tables(runtime)
    inputs = runtime.interface.bind((p.x,), {})
    with FlopCounterMode(display=False, custom_mapping=BY_TORCH) as counter:
        outputs, context = runtime.function("predict")(params, dict(buffers), inputs)
        given = [p.target] if runtime.source.moving else runtime.clamp(outputs, [p.target])[1]
        runtime.function("infer_and_learn")(params, context, given)
    return counter.get_total_flops()


def eager(p: Problem) -> int:
    """What torch counts while the model itself runs forward and backward."""
    model = copy.deepcopy(p.model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        p.loss(model(p.x), p.target).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["chain", "cnn", *(pytest.param(n, marks=pytest.mark.slow) for n in
                                                    ("lstm", "transformer"))])  # fmt: skip
def test_products_of_backpropagation_are_those_of_eager_torch(name: str) -> None:
    p = problem(name)
    pc = p.compile("exact")
    assert pc.cost().own.flops == pc.cost().backprop.flops == counted(p, pc) == eager(p)


def long_where(name: str, algorithm: str) -> Any:
    quick = name == "chain" or (name, algorithm) == ("cnn", "strict")
    return pytest.param(name, algorithm, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    "name, algorithm",
    [long_where(n, a) for n in ("chain", "gated", "cnn", "lstm", "transformer") for a in PROGRAMS if a != "exact"],
)
def test_products_are_those_of_the_generated_code(name: str, algorithm: str) -> None:
    p = problem(name)
    pc = p.compile(algorithm, **PROGRAMS[algorithm])
    assert pc.cost(p.x).own.flops == counted(p, pc)


def test_a_chain_by_hand() -> None:
    """Three layers 5 → 6 → 6 → 3 on 4 samples in float64: what strict does in 10 steps.

    The prediction of the first layer does not move. Learning computes that of the second one anew, for its slope.
    In the first turn nothing has moved that is predicted from and no error but the output's is there, in the second one
    the first layer has not moved.
    """
    p = problem("chain")
    found = p.compile("strict", steps=10).cost(p.x)
    forward, later = 2 * 4 * (5 * 6 + 6 * 6 + 6 * 3), 2 * 4 * (6 * 6 + 6 * 3)
    assert found.backprop.flops == forward + later + forward
    still = 2 * 4 * (6 * 6 + 6 * 3) + 2 * 4 * 6 * 6 + 2 * 4 * 6 * 6
    assert found.own.flops == forward + 10 * 2 * later - still + later + forward + 2 * 4 * 6 * 6
    assert found.backprop.depth == 2 + 2 + 1
    assert found.own.depth == 2 + 10 * 2 + 1 + 1
    assert found.backprop.messages == 2 + 2
    assert found.own.messages == 2 + 10 * (2 + 2) + 2
    assert found.own.message_bytes == found.own.messages * 4 * 6 * 8
    assert found.own.state_bytes == 2 * 4 * 6 * 8
    assert found.backprop.state_bytes == 0


def test_what_backpropagation_keeps_is_what_autograd_saves() -> None:
    """Of a chain: the input and the two hidden values."""
    p = problem("chain")
    saved: dict[int, int] = {}

    def save(t: torch.Tensor) -> torch.Tensor:
        saved[t.data_ptr()] = t.numel() * t.element_size()
        return t

    model = copy.deepcopy(p.model)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        output = model(p.x)
    weights = {w.data_ptr() for w in model.parameters()}
    kept = p.compile("exact").cost().own.kept_bytes
    assert kept == sum(n for place, n in saved.items() if place not in weights)
    assert output.shape == (4, 3)


def test_the_batch_counts() -> None:
    p = problem("cnn")
    pc = p.compile("strict", steps=3)
    small, large = pc.cost(p.x), pc.cost(torch.cat([p.x, p.x, p.x]))
    assert large.own.flops == 3 * small.own.flops
    assert large.own.message_bytes == 3 * small.own.message_bytes
    assert large.own.depth == small.own.depth
    assert (small.lengths, large.lengths) == ({"batch": 4}, {"batch": 12})


def test_the_report() -> None:
    p = problem("chain")
    found = p.compile("strict", steps=10).cost()
    assert "cost of one step of strict, batch = 4" in str(found)
    assert "sequential depth" in str(found)
    assert json.loads(found.json())["cost"]["own"]["flops"] == found.own.flops
