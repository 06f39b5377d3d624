"""Every algorithm trains the digits at automatic rates and steps to what backpropagation reaches, within a percent."""

from __future__ import annotations

from pathlib import Path

import pytest
from automatic import ALGORITHMS, Row, trained
from leaderboard_tasks import TASKS

EPOCHS = 10
CONVERGING = ("alm",)
"""Takes thousands of steps for each batch at its automatic settings: too long for a test of training."""
NORMALISED = ("meta-pcn",)
"""Its weights are normalised after each step, which changes what the network can be: compared without that."""

IN_PREDICTION = ("fixed-prediction", "meta-pcn")
"""What they relax has no curvature to measure: their settings are those at which they equal backpropagation."""


def row(algorithm: str) -> Row:
    task = TASKS["digits-mlp"]
    return trained(task, task.data(Path()), algorithm, EPOCHS, normalise=algorithm not in NORMALISED)


@pytest.fixture(scope="module")
def backprop() -> Row:
    return row("exact")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in ("exact", *CONVERGING)])
def test_automatic_settings_train_the_digits(algorithm: str, backprop: Row) -> None:
    assert backprop["accuracy"] > 90
    found = row(algorithm)
    assert found["accuracy"] > backprop["accuracy"] - 1
    assert bool(found["first"]) == ("auto" in ALGORITHMS[algorithm].values() and algorithm not in IN_PREDICTION)
