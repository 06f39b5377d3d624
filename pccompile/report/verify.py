"""Whether a compiled model computes what the model computes, and learns what its algorithm should make it learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.algorithms import ALGORITHMS
from pccompile.analysis.compare import Difference, agrees, difference, differences, nothing
from pccompile.diagnostics import EXIT_VERIFY
from pccompile.report.gradients import Bench, double_bench
from pccompile.report.law import Check, consistency, gradient_check, predicted_errors
from pccompile.report.losses import Criterion
from pccompile.report.tables import Page, Report, Table, count, finite, number
from pccompile.report.trace import RISE, Trace, infer
from pccompile.runtime.module import CompiledModule
from pccompile.runtime.pieces import ModuleInPieces
from pccompile.runtime.self_check import exact

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
FORWARD = 1e-4
"""Another runtime adds in another order: so much relative difference is float32 rounding in a deep network."""

ROWS = 30

Judge = Callable[[Bench, Bench], "tuple[Forward, list[str]]"]


@dataclass(frozen=True)
class Forward:
    """The outputs against those of `reference`, the worst of them."""

    reference: str
    relative_error: float
    max_abs: float
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class VerifyReport(Report):
    """What was compared. `passed` is False where a comparison that must hold does not.

    parameters: each gradient against autograd's. checks: further comparisons that the algorithm's law allows.
    tolerance: relative, for gradients. notes: what a reader has to know, such as the precision.
    """

    algorithm: str
    forward: Forward
    parameters: tuple[Difference, ...]
    checks: tuple[Check, ...]
    tolerance: float
    notes: tuple[str, ...]
    predicted: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether everything that must agree agrees."""
        return (
            self.forward.passed
            and all(p.agrees is not False and _is_number(p) for p in self.parameters)
            and all(c.passed for c in self.checks)
        )

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return 0 if self.passed else EXIT_VERIFY

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; what is no number is null."""
        plain = {**asdict(replace(self, parameters=(), checks=(), predicted={})), "passed": self.passed}
        plain["parameters"] = [{**asdict(p), "predicted": self.predicted.get(p.name)} for p in self.parameters]
        plain["checks"] = [asdict(c) for c in self.checks]
        return finite(plain)  # type: ignore[no-any-return]

    @property
    def page(self) -> Page:
        """The worst gradients, and a line for each comparison."""
        f = self.forward
        differs = f"relative difference {number(f.relative_error)} to {f.reference}"
        lines = [f"{_word(f.passed)}  forward: {differs} (at most {f.tolerance:.2g})"]
        lines += [f"{_word(c.passed)}  {c.what}: {number(c.found)} (at most {c.tolerance:g})" for c in self.checks]
        judged = [p for p in self.parameters if p.agrees is not None]
        failed = [p for p in judged if not p.agrees]
        if judged:
            worst = max(
                (abs(p.relative_error - self.predicted.get(p.name, 0)) for p in judged if not p.note), default=0.0
            )
            what = "distance from the predicted error" if self.predicted else "relative error"
            text = f"gradients of {count(len(judged), 'parameter')}: worst {what} {number(worst)}"
            text += f" (tolerance {self.tolerance:g})" + (
                f", {count(len(failed), 'differs', 'differ')}" if failed else ""
            )
            lines.append(f"{_word(not failed)}  {text}")
        lines += [f"note: {note}" for note in self.notes]
        return Page((*self._table(), *lines))

    def _table(self) -> tuple[Table | str, ...]:
        """The worst gradients, failures first."""
        order = sorted(self.parameters, key=lambda p: (p.agrees is not False, -p.error))
        head = (
            "parameter",
            ">relative error",
            *((">predicted",) if self.predicted else ()),
            ">cosine",
            ">largest",
            ">norm",
            "",
        )
        rows = []
        for p in order[:ROWS]:
            law = (number(self.predicted.get(p.name, math.nan)),) if self.predicted else ()
            verdict = ("" if _is_number(p) else "NO NUMBER") if p.agrees is None else "ok" if p.agrees else "DIFFERS"
            words = " ".join(filter(None, (verdict, p.note)))
            rows.append(
                (p.name, number(p.relative_error), *law, number(p.cosine, 6), number(p.max_abs), number(p.norm), words)
            )
        more = len(self.parameters) - ROWS
        return (Table(head, tuple(rows)), *((f"… and {more} parameters with smaller errors",) if more > 0 else ()), "")


def verify(
    pc: CompiledModule,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: Any = None,
    loss: Criterion | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    expected: Sequence[Tensor] | None = None,
    reference: str = "the model run by torch",
    notes: Sequence[str] = (),
    judge: Judge | None = None,
) -> VerifyReport:
    """Compare the forward pass with the model's own, and the gradients with autograd's; the model stays as it is.

    target, loss: by default normal numbers and the loss that the model was compiled with, or squared error.
    tolerance: relative, for gradients; by default 1e-10, or 1e-5 where the model does not run in float64.
    expected, reference: outputs of another runtime, and its name. judge: gives the verdict on the outputs, and notes,
    from benches in the model's own precision and in float64. Raises CompileError.
    """
    args, kwargs = ((args,) if isinstance(args, Tensor) else tuple(args)), dict(kwargs or {})
    bench, said = double_bench(pc, args, kwargs, loss, target, seed)
    own = Bench(pc, args, kwargs, loss, target, seed)
    forward, judged = judge(own, bench) if judge else (against_model(own, expected, reference), [])
    limit = TOLERANCE.get(bench.dtype, 1e-2) if tolerance is None else tolerance
    updates = () if isinstance(pc, ModuleInPieces) else pc.prepare(args, kwargs).source.updates
    wanted, found = ({}, {}) if updates else (bench.autograd(), bench.predictive_coding())
    compared = differences(found, wanted)
    largest = max((d.norm for d in compared), default=0.0)
    compared = [
        replace(d, note=d.note or ("0 up to rounding" if nothing(d, largest, bench.dtype) else "")) for d in compared
    ]
    predicted: dict[str, float] = {}
    checks: tuple[Check, ...] = ()
    said = [*notes, *judged, *said]
    algorithm = ALGORITHMS[pc.options.algorithm]
    if not pc.options.transposes:
        said.append(f"{pc.options.messages}: gradients differ from backpropagation's by design and are not judged")
        compared = [d if math.isfinite(d.relative_error) else replace(d, agrees=False) for d in compared]
        checks = (_mirrored(bench, wanted or bench.autograd(), limit),)
    elif algorithm.equals == "backprop":
        compared = [replace(d, agrees=agrees(d, limit, largest, bench.dtype)) for d in compared]
    elif pc.options.algorithm == "fixed-prediction":
        predicted, bound, settings = predicted_errors(bench)
        checks, more = consistency(bench, wanted, found, limit, settings)
        compared = [_by_law(d, predicted, limit, largest, bench.dtype) for d in compared]
        said += [f"{settings}: predicted relative error at most {number(bound, 3)} on each path", *more]
    else:
        equals = f"equals {algorithm.equals}" if algorithm.equals else "is not backpropagation, by design"
        told = "moves parameters inside inference: there is no gradient to compare" if updates else f"{equals}: cosines"
        said.append(f"{algorithm.name} {told}{'' if updates else ' are reported, gradients are not judged'}")
        compared = [d if math.isfinite(d.relative_error) else replace(d, agrees=False) for d in compared]
        checks = (settling(bench),)
    return VerifyReport(pc.options.algorithm, forward, tuple(compared), checks, limit, tuple(said), predicted)


def _mirrored(bench: Bench, wanted: Mapping[str, Tensor | None], limit: float) -> Check:
    """Whether the rules are those of backpropagation once messages read the model's own weights and all slopes."""
    found = bench.gradients_of(exact(bench.pc.prepare(bench.args, bench.kwargs)))
    return gradient_check("rules with each weight as its own feedback, against autograd", found, wanted, limit)


def _by_law(
    d: Difference, predicted: Mapping[str, float], limit: float, largest: float, dtype: torch.dtype
) -> Difference:
    """A gradient all of whose paths have one length must have the predicted error; others are judged by the checks."""
    if d.name not in predicted or not d.norm:
        return replace(d, agrees=agrees(d, limit, largest, dtype)) if not d.norm else d
    excess = replace(d, relative_error=abs(d.relative_error - predicted[d.name]))
    return replace(d, agrees=agrees(excess, 10 * limit, largest, dtype))


def against_model(
    bench: Bench, expected: Sequence[Tensor] | None = None, reference: str = "the model run by torch"
) -> Forward:
    """The outputs in the model's own precision against `expected`, or against those of the model."""
    found = _tensors(bench.run(bench.pc))
    others = list(expected) if expected is not None else _tensors(bench.run(bench.pc.__dict__["model"]))
    limit = FORWARD if expected is not None else TOLERANCE.get(bench.dtype, 1e-2)
    if len(found) != len(others):
        return Forward(reference, math.inf, math.inf, limit, False)
    worst = [difference(str(i), a, b) for i, (a, b) in enumerate(zip(found, others, strict=True))]
    error = max((d.error for d in worst), default=0.0)
    largest = max((math.inf if math.isnan(d.max_abs) else d.max_abs for d in worst), default=0.0)
    return Forward(reference, error, largest, limit, error <= limit)


def _tensors(output: Any) -> list[Tensor]:
    return [o.detach() for o in pytree.tree_leaves(output) if isinstance(o, Tensor)]


def _is_number(d: Difference) -> bool:
    """Whether the figures of a comparison are finite: what is infinite or no number passes nowhere."""
    return all(math.isfinite(f) for f in (d.relative_error, d.max_abs, d.norm))


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def settling(bench: Bench) -> Check:
    """The free energy at the end of inference against that at its start, which it must not exceed."""
    trace = traced(bench)
    first, last = float(trace.free_energy[0]), float(trace.free_energy[-1])
    what = f"free energy over {trace.steps} steps, {number(first)} → {number(last)}"
    if vertex := trace.first_not_finite():
        what += f": {vertex[0]} is not finite from step {vertex[1]} on"
    if not trace.descends:
        return Check(f"{what}, finite throughout", 0.0 if trace.settles else math.inf, RISE, trace.settles)
    risen = (last - first) / abs(first) if first else last
    return Check(what, risen if math.isfinite(risen) else math.inf, RISE, trace.settles)


def traced(bench: Bench) -> Trace:
    """A recording of one inference."""
    return infer(bench.pc, bench.args, bench.kwargs, target=bench.target, loss=None if bench.own else bench.loss)
