"""Every algorithm trains the digits at automatic rates and steps to what backpropagation reaches, within a percent."""

from __future__ import annotations

import pytest
from automatic import ALGORITHMS, measured

EPOCHS = 10
CONVERGING = ("alm",)
"""Takes thousands of steps for each batch at its automatic settings: too long for a test of training."""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in ("exact", *CONVERGING)])
def test_automatic_settings_train_the_digits(algorithm: str) -> None:
    backprop, _, _ = measured("digits-mlp", "exact", EPOCHS)
    assert backprop > 0.9
    accuracy, chosen, _ = measured("digits-mlp", algorithm, EPOCHS)
    assert accuracy > backprop - 0.01
    assert bool(chosen) == ("auto" in ALGORITHMS[algorithm].values() and algorithm != "fixed-prediction")
