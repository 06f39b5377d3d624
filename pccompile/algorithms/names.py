"""What a type checker knows of algorithms: the names of those that come along, and what their settings may be.

At run time the registry decides: it has algorithms from outside too, under names and settings of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from pccompile.algorithms.lowerings import Lowering
from pccompile.algorithms.record import Auto
from pccompile.algorithms.steppers import StepperName

AlgorithmName = Literal[
    "exact", "fixed-prediction", "meta-pcn", "zil", "strict", "incremental", "error-optimization", "alm", "nudged",
    "langevin", "bidirectional",
]  # fmt: skip


class AlgorithmSettings(TypedDict, total=False):
    """The settings of all of them. None is the default."""

    steps: int | Auto | None
    rate: float | Mapping[str, float] | Auto | None
    tolerance: float | None
    lowering: Lowering | None
    lowering_tolerance: float | None
    stepper: StepperName | None
    mass: float | None
    accuracy: float | None
    penalty: float | Auto | None
    dual_rate: float | None
    nudge: float | None
    phases: Literal["centred", "positive", "negative"] | None
    temperature: float | None
    burn_in: int | None
    discriminative: float | None
    generative: float | None
    dynamics: Literal["wavefront", "full"] | None
