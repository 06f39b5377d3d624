"""Whether a compiled ONNX file computes what the file says, judged by what its numbers can hold.

Another engine rounds elsewhere, so outputs agree up to rounding: that is measured, not assumed. Where two engines are
further apart, or numbers are too coarse to tell a wrong program from a right one, the file in wider numbers decides.
docs/onnx.md says so to readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pccompile.analysis.compare import difference
from pccompile.report.gradients import Bench
from pccompile.report.rounding import flips, movement, tensors_of
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


@dataclass(frozen=True)
class Apart:
    """How far outputs are apart, relatively, the one that exceeds its limit most; `passed` if none does."""

    relative: float
    largest: float
    limit: float
    passed: bool


def apart(found: Sequence[Tensor], expected: Sequence[Tensor], limits: Sequence[float]) -> Apart:
    """`found` against `expected`; other counts, shapes, and figures that are no numbers do not pass."""
    if len(found) != len(expected):
        return Apart(math.inf, math.inf, min(limits, default=0.0), False)
    worst = Apart(0.0, 0.0, min(limits, default=0.0), True)
    rank = -1.0
    for a, b, limit in zip(found, expected, limits, strict=True):
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
    found = tensors_of(own.run(own.pc))
    if expected is not None and [o.dtype for o in found] != [o.dtype for o in expected]:
        types = ", ".join(str(o.dtype).removeprefix("torch.") for o in expected)
        return Forward(name, math.inf, math.inf, 0.0, False), [f"the types of the outputs should be {types}"]
    if wide.dtype is not torch.float64:
        return _unmeasured(own, found, name, expected, coarsest)
    still = tensors_of(wide.run(wide.model))
    unit = torch.finfo(coarsest).eps / 2
    limits = [_limit(FLOOR[coarsest], ROUNDINGS * m) for m in movement(wide, unit, still)]
    first = apart(found, expected, limits) if expected is not None else None
    if first is not None and first.passed and torch.finfo(coarsest).bits >= 32:
        return _forward(name, first), []
    return _by_wider_numbers(_Case(own, found, wide, still, limits, coarsest, name, expected, first), engines)


@dataclass(frozen=True)
class _Case:
    """What is known when engines disagree."""

    own: Bench
    found: Outputs
    wide: Bench
    still: Outputs
    limits: list[float]
    coarsest: torch.dtype
    name: str
    expected: Outputs | None
    first: Apart | None


def _by_wider_numbers(case: _Case, engines: Iterable[Engine]) -> tuple[Forward, list[str]]:
    """The compiled program in float64 must be the file in wider numbers; then its own roundings are judged."""
    exact = tensors_of(case.wide.run(case.wide.pc))
    single = movement(case.wide, torch.finfo(torch.float32).eps / 2, case.still)
    steps = flips(case.wide, case.still)
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
    own: Bench, found: Outputs, name: str, expected: Outputs | None, coarsest: torch.dtype
) -> tuple[Forward, list[str]]:
    """The verdict on a model that does not run in float64."""
    if expected is None:
        return against_model(own), [NOBODY]
    note = "how far rounding moves the outputs was not measured: the model does not run in float64"
    return _forward(name, apart(found, expected, [LOOSE[coarsest]] * len(expected))), [note]


def _limit(*parts: float) -> float:
    return min(MOST, max(parts))


def _forward(name: str, a: Apart) -> Forward:
    return Forward(name, a.relative, a.largest, a.limit, a.passed)
