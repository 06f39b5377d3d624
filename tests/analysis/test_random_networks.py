"""At automatic rates no random network diverges, on its first batch and while it learns.

All of them: pytest tests/analysis/test_random_networks.py (200 networks under every algorithm). The same with a table:
python benchmarks/automatic.py --networks random.
"""

import pytest
from random_networks import SETTINGS, outcome

QUICK = 1


@pytest.mark.parametrize("algorithm", SETTINGS)
@pytest.mark.parametrize("seed", [s if s == QUICK else pytest.param(s, marks=pytest.mark.slow) for s in range(200)])
def test_no_random_network_diverges(algorithm: str, seed: int) -> None:
    wrong, _ = outcome(seed, algorithm)
    assert not wrong


@pytest.mark.parametrize(("seed", "why"), [(0, "is no number after batch 0"), (QUICK, "leaves its bound")])
def test_a_network_that_diverges_is_told(monkeypatch: pytest.MonkeyPatch, seed: int, why: str) -> None:
    monkeypatch.setitem(SETTINGS, "strict", {"rate": 60.0, "steps": 50})
    assert why in outcome(seed, "strict")[0]
