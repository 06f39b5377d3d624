"""Whether a compiled ONNX file computes what the file says, judged by what its numbers can hold.

Another engine rounds elsewhere, so outputs agree up to rounding: that is measured, not assumed. Where two engines are
further apart, or numbers are too coarse to tell a wrong program from a right one, the file in wider numbers decides.
docs/onnx.md says so to readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pccompile.analysis.compare import difference
from pccompile.ops import definition
from pccompile.report.gradients import Bench
from pccompile.report.tables import number
from pccompile.report.verify import Forward, against_model

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4 * 2.0**-11, torch.bfloat16: 4 * 2.0**-8}
"""The least difference, relative, that is allowed between engines: their elementary functions are not bit for bit."""

LOOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What is allowed where nothing can be measured and nobody decides."""

ROUNDINGS = 20
"""A program rounds after each operation: so many times what rounding its inputs and weights once does."""

MOST = 0.2
"""Outputs that rounding moves further than this say nothing."""

NOBODY = "no other runtime could run the file: its outputs were compared with its own in torch"

Outputs = list[Tensor]
Engine = tuple[str, Callable[[], "Outputs | None"], torch.dtype]
"""A name, what runs the file in wider numbers (None where it cannot), and its type."""
TRIALS = 2
NEAR = 1e-3
"""A number this near to the border between two steps, in steps, may be rounded either way."""


@dataclass(frozen=True)
class Apart:
    """How far outputs are apart, relatively, the one that exceeds its limit most; `passed` if none does."""

    relative: float
    largest: float
    limit: float
    passed: bool


def apart(outputs: Sequence[Tensor], expected: Sequence[Tensor], limits: Sequence[float]) -> Apart:
    """`outputs` against `expected`; other counts, shapes, and figures that are no numbers do not pass."""
    if len(outputs) != len(expected):
        return Apart(math.inf, math.inf, min(limits, default=0.0), False)
    worst = Apart(0.0, 0.0, min(limits, default=0.0), True)
    rank = -1.0
    for a, b, limit in zip(outputs, expected, limits, strict=True):
        d = difference("", a, b)
        relative = d.relative_error if math.isfinite(d.relative_error) else math.inf
        excess = relative / limit
        if excess > rank:
            rank = excess
            worst = Apart(relative, d.max_abs, limit, relative <= limit and math.isfinite(d.max_abs))
    return worst


def judge(
    own: Bench, wide: Bench, coarsest: torch.dtype, name: str, expected: Outputs | None, engines: Iterable[Engine]
) -> tuple[Forward, list[str]]:
    """The verdict on the forward pass, and what a reader must know.

    own: the compiled model as it is; wide: its twin in float64, or `own` again where it has none. coarsest: the
    coarsest type that the file computes in. expected: the outputs of engine `name` on the file as it is, None if it
    cannot. engines: those that can run the file in wider numbers, the first that can is asked first.
    """
    outputs = tensors_of(own.run(own.pc))
    if expected is not None and [o.dtype for o in outputs] != [o.dtype for o in expected]:
        types = ", ".join(str(o.dtype).removeprefix("torch.") for o in expected)
        return Forward(name, math.inf, math.inf, 0.0, False), [f"the types of the outputs should be {types}"]
    if wide.dtype is not torch.float64:
        return _unmeasured(own, outputs, name, expected, coarsest)
    unmoved = tensors_of(wide.run(wide.model))
    unit = torch.finfo(coarsest).eps / 2
    limits = [_limit(FLOOR[coarsest], ROUNDINGS * m) for m in movement(wide, unit, unmoved)]
    first = apart(outputs, expected, limits) if expected is not None else None
    if first is not None and first.passed and torch.finfo(coarsest).bits >= 32:
        return _forward(name, first), []
    return _by_wider_numbers(_Case(own, outputs, wide, unmoved, limits, coarsest, name, expected, first), engines)


@dataclass(frozen=True)
class _Case:
    """What is known when engines disagree."""

    own: Bench
    found: Outputs
    wide: Bench
    unmoved: Outputs
    limits: list[float]
    coarsest: torch.dtype
    name: str
    expected: Outputs | None
    first: Apart | None


def _by_wider_numbers(case: _Case, engines: Iterable[Engine]) -> tuple[Forward, list[str]]:
    """The compiled program in float64 must be the file in wider numbers; then its own roundings are judged."""
    exact = tensors_of(case.wide.run(case.wide.pc))
    single = movement(case.wide, torch.finfo(torch.float32).eps / 2, case.unmoved)
    steps = flips(case.wide, case.unmoved)
    limits = [_limit(limit, 4 * step) for limit, step in zip(case.limits, steps, strict=True)]
    refuted: tuple[str, Outputs, Apart] | None = None
    for engine, run, dtype in engines:
        outputs = run()
        if outputs is None:
            continue
        factor = 1 if dtype is torch.float64 else ROUNDINGS
        verdict = apart(exact, outputs, [_limit(FLOOR[torch.float32], factor * s) for s in single])
        if verdict.passed:
            return _by_own_rounding(case, exact, limits, engine, verdict)
        refuted = refuted or (engine, outputs, verdict)
    loose = [max(limit, LOOSE[case.coarsest]) for limit in limits]
    agreed = apart(case.found, case.expected, loose) if case.expected is not None else None
    if refuted is not None:
        engine, outputs, verdict = refuted
        others = apart(case.expected, outputs, loose) if case.expected is not None else None
        if agreed and others and agreed.passed and others.relative > 100 * max(agreed.relative, LOOSE[case.coarsest]):
            note = f"{engine} differs from both by {number(others.relative)}: it is off"
            return _forward(case.name, agreed), [note]
        said = [f"pccompile differs from {engine} by {number(verdict.relative)}"]
        if others:
            said.append(f"{case.name} by {number(others.relative)}")
        return _forward(engine, verdict), [f"in wider numbers, {', '.join(said)}"]
    if agreed is None:
        return against_model(case.own), [NOBODY]
    return _forward(case.name, agreed), ["no other engine could run the file in wider numbers"]


def _by_own_rounding(
    case: _Case, exact: Outputs, limits: list[float], engine: str, verdict: Apart
) -> tuple[Forward, list[str]]:
    """The program is right in wider numbers; whether its own numbers are as near as rounding brings them."""
    own = apart(case.found, exact, limits)
    said = f"in float64 the program differs from {engine} by {number(verdict.relative)} (at most {verdict.limit:.1e})"
    if case.first is None or case.expected is None:
        return _forward("float64", own), [said]
    other = apart(case.expected, exact, limits)
    if case.first.passed and own.passed:
        return _forward(case.name, case.first), [said]
    verdicts = f"{case.name} differs from float64 by {number(other.relative)}, pccompile by {number(own.relative)}"
    off = "" if own.passed == other.passed else f": {'pccompile' if other.passed else case.name} is off"
    return _forward("float64", own), [said, verdicts + off]


def _unmeasured(
    own: Bench, outputs: Outputs, name: str, expected: Outputs | None, coarsest: torch.dtype
) -> tuple[Forward, list[str]]:
    """The verdict on a model that does not run in float64."""
    if expected is None:
        return against_model(own), [NOBODY]
    note = "how far rounding moves the outputs was not measured: the model does not run in float64"
    return _forward(name, apart(outputs, expected, [LOOSE[coarsest]] * len(expected))), [note]


def _limit(*parts: float) -> float:
    return min(MOST, max(parts))


def _forward(name: str, a: Apart) -> Forward:
    return Forward(name, a.relative, a.largest, a.limit, a.passed)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a model's result."""
    return [o.detach() for o in pytree.tree_leaves(output) if isinstance(o, Tensor)]


def movement(bench: Bench, unit: float, unmoved: list[Tensor]) -> list[float]:
    """How far each output moves, relatively, where each input and weight is off by up to `unit` of itself.

    unmoved: the outputs of the unmoved model. What is no number counts as no movement: it excuses nothing.
    """
    moved = [0.0] * len(unmoved)
    for seed in range(TRIALS):
        draw = torch.Generator().manual_seed(seed)
        args = bench.args
        try:
            bench.args = pytree.tree_map_only(Tensor, partial(_nudged, unit=unit, draw=draw), args)
            with _weights_nudged(bench, unit, draw):
                outputs = tensors_of(bench.run(bench.model))
        finally:
            bench.args = args
        moved = _furthest(moved, outputs, unmoved)
    return moved


def flips(bench: Bench, unmoved: list[Tensor]) -> list[float]:
    """How far each output moves, relatively, where numbers near a border between steps are rounded the other way."""
    moved = [0.0] * len(unmoved)
    for seed in range(TRIALS):
        with _Unsteady(torch.Generator().manual_seed(seed)):
            outputs = tensors_of(bench.run(bench.model))
        moved = _furthest(moved, outputs, unmoved)
    return moved


class _Unsteady(TorchDispatchMode):
    """Whatever is rounded is moved a little before."""

    def __init__(self, draw: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draw = draw

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if definition(str(func)).rounds and args[0].is_floating_point():
            args = (args[0] + NEAR * _uniform(args[0], self.draw), *args[1:])
        return func(*args, **(kwargs or {}))


def _uniform(like: Tensor, draw: torch.Generator) -> Tensor:
    return (2 * torch.rand(like.shape, generator=draw, dtype=torch.float64) - 1).to(like.device, like.dtype)


def _nudged(tensor: Tensor, unit: float, draw: torch.Generator) -> Tensor:
    return tensor * (1 + unit * _uniform(tensor, draw)) if tensor.is_floating_point() else tensor


@contextmanager
def _weights_nudged(bench: Bench, unit: float, draw: torch.Generator) -> Iterator[None]:
    """The model's parameters and buffers are off by up to `unit` of themselves inside."""
    tensors = [t for t in (*bench.model.parameters(), *bench.model.buffers()) if t.is_floating_point()]
    before = [t.detach().clone() for t in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(_nudged(tensor, unit, draw))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _furthest(moved: list[float], outputs: list[Tensor], unmoved: list[Tensor]) -> list[float]:
    errors = [difference("", a, b).relative_error for a, b in zip(outputs, unmoved, strict=True)]
    return [max(m, f) if f < float("inf") else m for m, f in zip(moved, errors, strict=True)]
