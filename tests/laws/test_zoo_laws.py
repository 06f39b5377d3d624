"""The law of fixed prediction on every model of the zoo: T steps are its path lengths, weighted, in both lowerings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.cases import built, cases, drawn
from helpers.models import Gradients, distance
from torch import Tensor
from zoo import ZOO, Case

import pccompile
from laws.references import by_path_length, survival
from pccompile import PCModule
from pccompile.backends.torch import emit
from pccompile.pipeline import Options, schedule
from pccompile.runtime.loaded_program import load

STEPS, RATE = 9, 0.4
SLOW = {name for name, case in ZOO.items() if case.slow or case.refused}
SLOW |= {"mobilenet_v2", "resnet18", "vgg11_bn", "translator", "llama"}


def settled(pc: PCModule, case: Case, inputs: tuple[Tensor, ...], target: Tensor, lowering: str) -> Gradients:
    """The gradients after STEPS steps, as the generated file returns them."""
    settings: dict[str, Any] = {"steps": STEPS, "rate": RATE, "lowering": lowering}
    runtime = pc.prepare(inputs)
    source = emit(schedule(runtime.compiled.pc, Options("fixed-prediction", None, settings)))
    functions = load(source.text, case.name)
    params, buffers = pc.tables(runtime)
    torch.manual_seed(7)
    buffers = {name: b.clone() for name, b in buffers.items()}
    outputs, context = functions["predict"](params, buffers, runtime.interface.bind(inputs, {}))
    leaves = [o.detach().requires_grad_(o.is_floating_point()) for o in outputs]
    value = case.loss(runtime.interface.assemble(leaves), target)
    wanted = [leaves[i] for i in source.errors]
    sent = torch.autograd.grad(value, wanted, allow_unused=True)
    errors = [torch.zeros_like(o) if g is None else -g for o, g in zip(wanted, sent, strict=True)]
    found: Gradients = functions["infer_and_learn"](params, context, errors)
    return found


@pytest.mark.quick(14)
@pytest.mark.parametrize("case", cases(ZOO, SLOW))
def test_t_steps_weight_each_path_by_its_length(case: Case) -> None:
    inputs, target = drawn(case, torch.float64)
    options = {"algorithm": "fixed-prediction", "steps": STEPS, "check": False}
    pc = pccompile.compile(built(case.build, torch.float64), inputs, **options)
    torch.manual_seed(7)
    parts = by_path_length(pc, lambda output: case.loss(output, target), *inputs)
    law: Gradients = {
        name: sum(survival(STEPS, RATE, k) * part[name] for k, part in enumerate(parts)) for name in parts[0]
    }
    closed, relaxed = (settled(pc, case, inputs, target, lowering) for lowering in ("closed-form", "relax"))
    assert distance(closed, law, floor=1e-3) < 1e-9
    assert distance(closed, relaxed, floor=1e-3) < 1e-10
