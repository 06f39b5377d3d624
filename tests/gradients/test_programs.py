"""Programs of all kinds, compiled as they are and without an option: they learn as in eager torch."""

from __future__ import annotations

import copy
import random
import warnings
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from zoo import programs_arguments, programs_derivatives
from zoo.programs import PROGRAMS, Program

import pccompile
from pccompile import CompileError

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "silent_logs")
assert programs_arguments
assert programs_derivatives


def leaves(value: Any) -> list[Tensor]:
    """The tensors in what a program takes or returns: in containers, records and objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in leaves(v)]
    if hasattr(value, "values") and callable(value.values):
        return [t for v in value.values() for t in leaves(v)]
    if is_dataclass(value):
        return [t for f in fields(value) for t in leaves(getattr(value, f.name))]
    return [t for v in vars(value).values() for t in leaves(v)] if hasattr(value, "__dict__") else []


def step(called: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor | None]:
    """Outputs, gradients and buffers of one step, and what became of the arguments."""
    model.zero_grad()
    torch.manual_seed(7)
    random.seed(7)
    outputs = leaves(called(*args, **kwargs))
    learn = [t for t in outputs if t.requires_grad]
    sum((t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in learn).backward()  # type: ignore[union-attr]
    found: dict[str, Tensor | None] = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    found |= {f"argument {i}": t.grad for i, t in enumerate(leaves((args, kwargs)))}
    found |= {f"value {i}": t.detach() for i, t in enumerate(leaves((args, kwargs)))}
    found |= {f"buffer {k}": b.clone() for k, b in model.named_buffers()}
    return found | {k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}


def compared(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> float:
    """The worst relative difference; what is missing is missing in both."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, value in wanted.items():
        other = found[name]
        assert (other is None) == (value is None), name
        if value is not None and other is not None:
            assert other.shape == value.shape, name
            worst = max(worst, float((other.double() - value.double()).norm() / (value.double().norm() + 1e-3)))
    return worst


def arguments(program: Program, seed: int, scale: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call whose floating arguments want gradients, but for masks."""
    args, kwargs = program.call(Generator().manual_seed(seed), scale)
    for t in leaves((args, kwargs)):
        if t.is_floating_point() and t.isfinite().all():
            t.requires_grad_()
    return args, kwargs


REFUSED = {"equilibrium_with_a_hook": "a hook on a value changes its gradient"}
"""What no way holds, and what is said of it."""


def entries(refused: bool) -> list[Any]:
    return [
        pytest.param(p, id=n, marks=[pytest.mark.slow] if p.slow else [])
        for n, p in PROGRAMS.items()
        if (n in REFUSED) is refused
    ]


@pytest.mark.slow
@pytest.mark.parametrize("program", entries(refused=True))
def test_what_no_way_holds_is_refused(program: Program) -> None:
    args, kwargs = program.call(Generator().manual_seed(1), 1.0)
    with pytest.raises(CompileError) as raised:
        pccompile.compile(program.build().double(), args, kwargs)
    assert REFUSED[program.name] in str(raised.value)


@pytest.mark.quick(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", entries(refused=False))
def test_every_program_learns_as_in_eager_torch_without_an_option(program: Program) -> None:
    torch.manual_seed(0)
    model = program.build().double()
    reference = copy.deepcopy(model)
    args, kwargs = program.call(Generator().manual_seed(1), 1.0)
    pc = pccompile.compile(model, args, kwargs)
    assert pc.checked is not None
    for seed, scale in ((2, 1.0), (3, 2.0), (2, -1.0), (2, 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = step(pc, model, *arguments(program, seed, scale))
        assert compared(found, step(reference, reference, *arguments(program, seed, scale))) < 1e-9
