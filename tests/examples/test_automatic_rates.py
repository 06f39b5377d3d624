"""The page of automatic rates says of each row what it lacks, and what became of random networks."""

import sys
from pathlib import Path

import automatic
import pytest


def test_random_networks_are_surveyed_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "page.md"
    monkeypatch.setattr(automatic, "PORTION", 1)
    options = ("--networks", "random", "--count", "2", "--algorithms", "strict", "--output", str(output))
    monkeypatch.setattr(sys, "argv", ["automatic.py", *options])
    automatic.main()
    (row,) = (line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("| `strict`"))
    assert row.split(" | ")[1:4] == ["rate, steps", "2", "0"]
    monkeypatch.setitem(automatic.OF_RANDOM_NETWORKS, "strict", {"rate": 60.0, "steps": 50})
    automatic.main()
    text = output.read_text(encoding="utf-8")
    assert "| `strict` | – | 2 | 2 |" in text
    assert "- `strict`, network 0: layers.0.0.weight is no number" in text
    assert "- `strict`, network 1: strict inference leaves its bound" in text


def test_a_row_below_backpropagation_says_why() -> None:
    base = {"accuracy": 92.0, "curvature": [0.1, 16.0]}
    rows = {"exact": base, "strict": {**base, "accuracy": 87.0, "weak": 91.5}}
    assert "not the loss: λmax(S) goes from 0.1 to 16; loss / 100: 91.50" in automatic.reason(
        "strict", rows["strict"], rows
    )
    rows["strict"]["weak"] = 89.0
    assert "a part only" in automatic.reason("strict", rows["strict"], rows)
    assert automatic.reason("strict", {**base, "accuracy": 91.5}, rows) == ""
    untrained = automatic.reason("alm", {"milliseconds": 600.0, "batches": 230}, rows)
    assert untrained == "not trained: 600 ms of CPU a batch, 2 min for 230 batches"
