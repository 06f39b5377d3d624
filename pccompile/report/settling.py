"""Whether inference settles: free energy that rises from the feedforward state says that it does not."""

from __future__ import annotations

import math

from pccompile.report.gradients import Bench
from pccompile.report.law import Check
from pccompile.report.tables import number
from pccompile.report.trace import RISE, Trace, infer


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
