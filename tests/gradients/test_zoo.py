"""Every model of the zoo, and every trap: what plain autograd gives, or a refusal; never a wrong gradient."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers.cases import built, cases, drawn
from helpers.models import distance
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import TRAPS, ZOO, Case
from zoo.reference import _writable

import pccompile
from pccompile import CompileError

EITHER = ("straight_through", "gradient_reversal", "function_of_two", "tensor_hook", "backward_hook")
"""Backward passes of a model's own: right, or refused."""

SLOW = {"mobilenet_v2"}
SLOW_TWICE = {
    "diffusion_unet",
    "scattered_attention",
    "spectral_norm_hooked",
    "stacked_dropout",
    "stacked_gru",
    "stacked_lstm",
    "translator",
    "gpt2",
    "gpt2_no_dropout",
    "gru",
    "llama",
    "lstm_bidirectional",
    "operations",
    "seq2seq",
    "torch_encoder",
    "vit",
}
ALL = ZOO | TRAPS
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def gradients(module: nn.Module, case: Case, inputs: tuple[Any, ...], target: Tensor) -> dict[str, Tensor | None]:
    """Gradients of parameters and inputs, the loss, and the buffers afterwards; a draw is the same for each module."""
    torch.manual_seed(7)
    value = case.loss(module(*map(_writable, inputs)), target)
    value.backward()
    found: dict[str, Tensor | None] = {name: p.grad for name, p in module.named_parameters()}
    found |= {f"input {i}": x.grad for i, x in enumerate(inputs) if x.is_floating_point()}
    found |= {f"buffer {name}": b.detach() for name, b in module.named_buffers() if b.is_floating_point()}
    return {**found, "loss": value.detach()}


def compared(case: Case, dtype: torch.dtype) -> float:
    """The worst relative difference between predictive coding and autograd."""
    inputs, target = drawn(case, dtype)
    twins, _ = drawn(case, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = tuple(x.detach().clone() for x in inputs) if case.name == "input_written" else inputs
        pc = pccompile.compile(built(case.build, dtype), example, check=dtype is torch.float64)
        found = gradients(pc, case, inputs, target)
    wanted = gradients(built(case.oracle or case.build, dtype), case, twins, target)
    infinite = {k for k, w in wanted.items() if w is not None and not w.isfinite().all()}
    assert all(torch.equal(found[k].nan_to_num(), wanted[k].nan_to_num()) for k in infinite)
    if case.name == "cond":  # torch.cond has zeros for what only the other branch reads, and we None
        zeros = [k for k, w in wanted.items() if found[k] is None and w is not None and not w.any()]
        wanted |= dict.fromkeys(zeros)
    kept = [k for k in wanted if k not in infinite]
    return distance({k: found[k] for k in kept}, {k: wanted[k] for k in kept}, floor=1e-3)


@pytest.mark.quick(30)
@pytest.mark.parametrize("case", cases(ALL, SLOW))
def test_exact_equals_autograd(case: Case) -> None:
    try:
        worst = compared(case, torch.float64)
    except CompileError:
        if case.name not in EITHER:
            raise
        return
    assert worst < LIMITS[torch.float64]


@pytest.mark.quick(8)
@pytest.mark.parametrize("case", cases(ZOO, SLOW | SLOW_TWICE))
def test_float32_equals_float32_autograd(case: Case) -> None:
    assert compared(case, torch.float32) < LIMITS[torch.float32]


def refusal(case: Case) -> str:
    inputs, _ = drawn(case, torch.float64)
    with pytest.raises(CompileError) as caught:
        pccompile.compile(built(case.build, torch.float64), inputs, capture="export")
    for problem in caught.value.problems:
        assert "\n" not in problem.what
        assert len(str(problem).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize("name", [name for name, case in ALL.items() if case.refused])
def test_what_torch_export_refuses_is_refused_in_one_line(name: str) -> None:
    assert "cannot capture" in refusal(ALL[name])


def test_compiling_leaves_the_model_as_it_was() -> None:
    """Neither the draw of an example pass nor its batch statistics leave a trace."""
    for name in ("resnet18", "encoder"):
        case = ZOO[name]
        model = built(case.build, torch.float32)
        before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        inputs = pytree.tree_map(torch.Tensor.detach, drawn(case, torch.float32)[0])
        pccompile.compile(model, inputs)
        assert torch.equal(torch.get_rng_state(), stream)
        assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
