"""Inference algorithms: PCGraph to Program, one file each. An algorithm is data: update equations in phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pccompile.algorithms import exact, fixed_prediction, strict
from pccompile.ir import Program

Schedule = Callable[..., Program]

ALGORITHMS: Mapping[str, Schedule] = {
    "exact": exact.schedule,
    "fixed-prediction": fixed_prediction.schedule,
    "strict": strict.schedule,
}
GRANULARITY: Mapping[str, str] = {"exact": "op", "fixed-prediction": "layer", "strict": "layer"}
"""What a vertex is by default: one layer where an algorithm's answer depends on it."""

__all__ = ["ALGORITHMS", "GRANULARITY", "Schedule"]
