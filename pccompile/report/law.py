"""Fixed-prediction gradients against their law: what T steps of size η leave of each path is known beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pccompile.algorithms.law import PathLengths, gradient_error, path_lengths
from pccompile.analysis.compare import differences
from pccompile.ir.law import weight
from pccompile.pipeline import schedule
from pccompile.report.gradients import Bench, Gradients

SECONDS = 60.0
"""What a further program may take to run."""


@dataclass(frozen=True)
class Check:
    """A comparison of two results that must be equal: the worst relative difference and how large it may be."""

    what: str
    found: float
    tolerance: float
    passed: bool


def predicted_errors(bench: Bench) -> tuple[dict[str, float], float, str]:
    """The relative error of each gradient whose paths all have one length; a bound; the settings."""
    pc = bench.pc.prepare(bench.args, bench.kwargs).compiled
    assert pc is not None
    steps, rate = settings_of(bench)
    lengths, children = path_lengths(pc.pc), pc.pc.children()
    names = {id(p): k for k, p in bench.parameters().items()}
    found = {}
    for param, tensor in pc.imported.tensors.items():
        distinct = {k for c in children.get(param, ()) for k in lengths[c.name]}
        if id(tensor) in names and len(distinct) == 1:
            found[names[id(tensor)]] = abs(1 - weight(steps, rate, distinct.pop()))
    return found, gradient_error(pc.pc, steps, rate), f"{steps} steps of size {rate:g}"


def settings_of(bench: Bench) -> tuple[int, float]:
    """Steps and rate of a fixed-prediction program, tolerances resolved."""
    compiled = bench.pc.prepare(bench.args, bench.kwargs).compiled
    assert compiled is not None
    options = replace(bench.pc.options, settings={**bench.pc.options.settings, "lowering": "relax"})
    arguments: Mapping[str, Any] = schedule(compiled.pc, options).arguments
    return int(arguments["steps"]), float(arguments["rate"])


def consistency(
    bench: Bench, wanted: Gradients, found: Gradients, tolerance: float, settings: str
) -> tuple[tuple[Check, ...], list[str]]:
    """Two results that hold on any graph, whatever T and η.

    With η = 1, as many steps as the longest path has edges give autograd's gradients. And taking the steps gives what
    the closed form gives.
    """
    compiled = bench.pc.prepare(bench.args, bench.kwargs).compiled
    assert compiled is not None
    start = time.monotonic()
    bench.predictive_coding()
    sweep = time.monotonic() - start
    longest = PathLengths(compiled.pc).longest
    steps, rate = settings_of(bench)
    checks, notes = [], []
    if sweep * longest < SECONDS:
        limit = bench.gradients_of(bench.other_program(steps=longest, rate=1.0, lowering="relax"))
        checks.append(gradient_check(f"{longest} steps of size 1 against autograd", limit, wanted, tolerance))
    else:
        notes.append(f"{longest} steps of size 1 were not compared with autograd: that takes too long here")
    taken = min(steps, max(1, int(SECONDS / max(sweep, 1e-3))))
    if taken < steps:
        notes.append(f"steps and closed form were compared for {taken} of the {steps} steps: more take too long here")
    relaxed = bench.gradients_of(bench.other_program(steps=taken, rate=rate, lowering="relax"))
    closed = bench.gradients_of(bench.other_program(steps=taken, rate=rate, lowering="closed-form"))
    what = f"{taken} steps of size {rate:g} taken against their closed form"
    checks.append(gradient_check(what, relaxed, closed, tolerance))
    if taken == steps:
        tolerated = compiled.program.tolerance
        allowed = {k: tolerated * float(g.norm()) for k, g in wanted.items() if g is not None}
        what = f"the compiled program against the {settings}"
        checks.append(gradient_check(what, found, relaxed, tolerance, allowed))
    return tuple(checks), notes


def gradient_check(
    what: str,
    found: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    tolerance: float,
    allowed: Mapping[str, float] = MappingProxyType({}),
) -> Check:
    """The worst difference, relative to the gradient's norm, or to the largest one's where that is next to nothing.

    allowed: for each gradient, the norm of a difference that does not count.
    """
    compared = differences({k: found.get(k) for k in expected}, expected)
    largest = max((d.norm for d in compared), default=0.0)
    worst = 0.0
    for d in compared:
        absolute = (d.relative_error * d.norm if d.norm else d.max_abs) - allowed.get(d.name, 0.0)
        absolute = max(absolute, 0.0)  # in this order: what is no number stays so
        scale = max(d.norm, 1e-3 * largest)
        missing = math.isinf(d.relative_error) and d.norm == 0 and d.note
        relative = math.inf if missing or not math.isfinite(absolute) else absolute / scale if scale else absolute
        worst = max(worst, relative)
    return Check(f"{what}", worst, tolerance, worst <= tolerance)
