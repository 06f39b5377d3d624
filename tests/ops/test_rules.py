"""Every operation: its spelling against torch, its messages against autograd, its formula against both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
from ops.harness import Run, arguments, evaluate, run
from ops.references import REFERENCES
from torch import Tensor

from pccompile.ops import OPS
from pccompile.ops.elementwise import arguments as symbols_of
from pccompile.ops.registry import OpDef, Sample

SAMPLES = [pytest.param(op, s, id=f"{name}-{i}") for name, op in OPS.items() for i, s in enumerate(op.samples)]
ELEMENTWISE = [op for op in OPS.values() if op.formula is not None and op.samples]


AUTOGRAD_IS_WRONG: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "aten.special_log_ndtr.default": (
        "it adds x²/2 to a logarithm that is about −x²/2: no digit is left from x = −1e4 on in float32",
        lambda x: x < -5,
    ),
    "aten.hypot.default": (
        "the product of its first two factors is subnormal",
        lambda x, y: (x.abs() < 1e-36) & (y.abs() < 1e-36),
    ),
    "aten.clamp.Tensor": ("where the bounds are equal it sends the error to neither", lambda x, low, high: low == high),
}
"""Where autograd's finite number is not the derivative; a rule may differ from it there."""


def _left_out(op: OpDef, ran: Run, like: Tensor) -> Tensor:
    """The entries at which autograd is wrong."""
    tensors = [t for k, t in ran.values.items() if k.startswith("t") and k[1:].isdigit()]
    if op.name not in AUTOGRAD_IS_WRONG or len(tensors) != AUTOGRAD_IS_WRONG[op.name][1].__code__.co_argcount:
        return torch.zeros_like(like, dtype=torch.bool)
    return AUTOGRAD_IS_WRONG[op.name][1](*tensors).expand_as(like)


def _run(op: OpDef, sample: Sample, dtype: torch.dtype = torch.float64, scale: float = 1.0, **how: Any) -> Run:
    return run(op.name, *arguments(sample, dtype, scale), REFERENCES.get(op.name), **how)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest entry, wherever `expected` is finite."""
    if not isinstance(expected, Tensor):
        return
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if not (expected.dtype.is_floating_point or expected.dtype.is_complex):
        assert torch.equal(found, expected)
        return
    finite = expected.isfinite()
    assert found[finite].isfinite().all()
    if finite.any():
        distance = (found[finite] - expected[finite]).abs().max()
        assert distance <= tolerance * expected[finite].abs().max().clamp_min(1e-30)


OVERWRITTEN = "pccompile.overwritten.default"


def test_every_rule_has_samples() -> None:
    made_by_models = {"pcc.function", "pcc.cond", "pcc.while_loop", "pcc.scan", OVERWRITTEN}  # they call what it holds
    made_by_models |= {op.name for op in OPS.values() if op.random}  # tests/validity/test_checkpoints_and_samples.py
    made_by_models |= {name for name in OPS if "fake_quantize" in name}  # scales take no gradient, or one of their own
    own = {name: op for name, op in OPS.items() if name.startswith(("aten.", "pcc."))}
    assert [name for name, op in own.items() if op.rule and not op.samples and name not in made_by_models] == []


@pytest.mark.parametrize("op, sample", SAMPLES)
def test_samples(op: OpDef, sample: Sample) -> None:
    """The spelling is the operation, and the messages are autograd's, at unit and at wide scale."""
    for dtype, scale, tolerance in (
        (torch.float64, 1, 1e-10),
        (torch.float64, 100, 1e-10),
        (torch.float32, 100, 1e-3),
    ):
        ran = _run(op, sample, dtype, scale)
        for found, expected in zip(ran.results, ran.expected, strict=True):
            _close(found, expected, tolerance)
        for name, expected in ran.gradients.items():
            judged = ~_left_out(op, ran, expected) if op.name == "aten.special_log_ndtr.default" else ...
            _close(ran.messages[name][judged], expected[judged], tolerance)


def _spread(t: Tensor) -> Tensor:
    """`t` as every second entry of its memory, between numbers that nobody should read."""
    return torch.stack([t, torch.full_like(t, 77)], -1)[..., 0]


def _turned(t: Tensor) -> Tensor:
    """`t` with its first dimension lying innermost."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 1 else t


@pytest.mark.parametrize("layout", [_spread, _turned])
@pytest.mark.parametrize("op, sample", SAMPLES)
def test_samples_however_they_lie_in_memory(op: OpDef, sample: Sample, layout: Callable[[Tensor], Tensor]) -> None:
    ran = _run(op, sample, layout=layout)
    for found, expected in zip(ran.results, ran.expected, strict=True):
        _close(found, expected, 1e-10)
    for name, expected in ran.gradients.items():
        _close(ran.messages[name], expected, 1e-10)


FORMULA_LESS = {
    "aten.nan_to_num.default": "the expression is that of finite numbers",
    "aten.hardsigmoid.default": "ATen's kernel has 1/6 in float32 even for float64, and so has autograd",
}


@pytest.mark.parametrize("op", ELEMENTWISE, ids=lambda op: op.name)
def test_formula(op: OpDef) -> None:
    """The expression that is shown is the function that is computed, and its slope is that of the kernel."""
    if op.name in FORMULA_LESS:
        return
    assert op.formula is not None
    for sample in op.samples:
        ran = _run(op, sample)
        expr = op.formula(ran.node)
        symbols = symbols_of(op.name) if op.name.startswith("aten.") else ()
        _close(evaluate(expr, symbols, ran).expand_as(ran.expected[0]), ran.expected[0], 1e-9)
        tied = any(isinstance(t, Tensor) and t.numel() < 4 for t in ran.values.values()) and expr.has(sp.Piecewise)
        for symbol, argument in symbols:
            name = str(ran.node[argument])
            if not tied and name in ran.messages:
                slope = evaluate(sp.diff(expr, symbol), symbols, ran)
                _close(ran.messages[name], (ran.values["err0"] * slope).sum_to_size(ran.values[name].shape), 1e-9)


EXTREMES = (0.0, -0.0, 1e-310, -1e-310, 1e-40, -1e-40, 1.2e-38, 1.0, -1.0, 0.5, 1e4, -1e4, torch.inf, -torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ELEMENTWISE, ids=lambda op: op.name)
def test_extremes(op: OpDef, dtype: torch.dtype) -> None:
    """At zeros, subnormal, huge and infinite numbers the message agrees with autograd wherever that is finite."""
    line = torch.tensor(EXTREMES, dtype=dtype)
    grid = (line.repeat(len(line)), line.repeat_interleave(len(line)), torch.ones(len(line) ** 2, dtype=dtype))
    overflow = torch.finfo(dtype).max / 1e3  # from there on the order of factors decides whether a product is finite
    for sample in op.samples:
        args, kwargs = arguments(sample, dtype)
        axes = iter(grid)
        args = [next(axes) if isinstance(a, Tensor) else a for a in args]
        ran = run(op.name, args, kwargs, REFERENCES.get(op.name))
        for name, expected in ran.gradients.items():
            judged = (expected.abs() < overflow) & ~_left_out(op, ran, expected)
            tolerance = 1e-4 if dtype == torch.float32 else 1e-11
            torch.testing.assert_close(ran.messages[name][judged], expected[judged], rtol=tolerance, atol=1e-37)
