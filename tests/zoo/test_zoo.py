"""The zoo itself: every case is differentiable by autograd in both precisions, and its notes are true."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zoo import TRAPS, ZOO, Case
from zoo.reference import autograd_gradients

CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in (ZOO | TRAPS).values()
]
DTYPES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (torch.float64, torch.float32)]


def drawn(
    case: Case, build: Callable[[], nn.Module], dtype: torch.dtype
) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """The seeded module, its inputs and the target."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    return build().to(dtype), case.inputs(generator, dtype), case.target(generator, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_autograd(case: Case, dtype: torch.dtype) -> None:
    module, inputs, target = drawn(case, case.oracle or case.build, dtype)
    before = [x.clone() for x in inputs]
    _, loss, gradients, at_inputs = autograd_gradients(module, inputs, case.loss, target)
    assert loss.dtype == dtype
    assert math.isfinite(loss)
    for x, old in zip(inputs, before, strict=True):
        assert torch.equal(x, old)
    for parameter in module.parameters():
        assert parameter.grad is None
    for gradient in (*gradients.values(), *at_inputs):
        assert gradient is None or gradient.isfinite().all()


@pytest.mark.quick(50)
@pytest.mark.parametrize("case", CASES)
def test_export(case: Case) -> None:
    module, inputs, _ = drawn(case, case.build, torch.float64)
    if case.refused or not case.exported:
        with pytest.raises(Exception):  # noqa: B017, PT011 (torch raises many kinds)
            torch.export.export(module, inputs, strict=False)
    else:
        torch.export.export(module, inputs, strict=False)


def test_the_unreached_have_no_gradient() -> None:
    module, inputs, target = drawn(ZOO["unused_parameter"], ZOO["unused_parameter"].build, torch.float64)
    _, _, gradients, _ = autograd_gradients(module, inputs, ZOO["unused_parameter"].loss, target)
    assert {name for name, gradient in gradients.items() if gradient is None} == {
        "spare.weight",
        "spare.bias",
        "dead.weight",
        "dead.bias",
    }


def test_while_loop_needs_its_oracle() -> None:
    """When this fails torch has repaired `while_loop`, and the oracle can go."""
    case = TRAPS["while_loop"]
    found = {}
    for build in (case.build, case.oracle):
        module, inputs, target = drawn(case, build, torch.float64)
        _, _, found[build], _ = autograd_gradients(module, inputs, case.loss, target)
    direct, unrolled = found.values()
    assert direct.keys() == unrolled.keys()
    assert not torch.allclose(direct["cell.weight"], unrolled["cell.weight"])
