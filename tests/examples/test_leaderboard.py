"""The leaderboard keeps each row, measures none twice, and says what did not run."""

import json
from dataclasses import replace
from pathlib import Path

import leaderboard
import pytest
from leaderboard_page import page
from leaderboard_tasks import TASKS


@pytest.fixture(autouse=True)
def _short(monkeypatch) -> None:
    monkeypatch.setitem(TASKS, "digits-mlp", replace(TASKS["digits-mlp"], epochs=1))


def run(output: Path, *options: str) -> str:
    """The page after a run on digits with one seed."""
    leaderboard.main(["--output", str(output), "--seeds", "1", *options])
    return output.read_text(encoding="utf-8")


def test_rows_are_kept_and_not_measured_again(tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "page.md"
    options = ("--networks", "digits-mlp", "--algorithms", "backpropagation", "exact")
    text = run(output, *options)
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    same = lines["backpropagation (autograd)"].split(" | ")[2]
    assert lines["`exact`"].split(" | ")[2:5] == [same, "1.0000", "1.0000"]
    assert lines["`strict`"].split(" | ")[2] == "not run"
    assert "- MNIST" in text.split("## Not run")[1]
    monkeypatch.setattr(leaderboard, "trained", lambda *_: pytest.fail("measured again"))
    assert run(output, *options) == text
    assert run(output, "--page-only") == text


def test_what_is_far_on_one_network_is_not_local() -> None:
    row = {
        "cosines": [1, 1],
        "flops": 2,
        "hops": 3,
        "accuracy": 90,
        "error": None,
        "seeds": 1,
        "ratio": 2,
        "commit": "a",
    }
    deep = {"strict": {**row, "local": True}, "alm": {**row, "hops": 17, "local": False}}
    text = page({"digits-mlp": {"alm": {**row, "local": True}}, "residual-8": deep}, {})
    cells = [line.split(" | ")[7:9] for line in text.splitlines() if line.startswith(("| `alm`", "| `strict`"))]
    assert cells == [["", ""], ["3", "no"], ["3", "yes"], ["17", "no"]]


def test_a_row_with_other_settings_is_measured_anew(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    run(output, "--networks", "digits-mlp", "--algorithms", "exact")
    kept = output.with_suffix(".json")
    store = json.loads(kept.read_text(encoding="utf-8"))
    store["rows"]["digits-mlp"]["exact"] |= {"settings": {"steps": 3}, "accuracy": 0.0}
    kept.write_text(json.dumps(store), encoding="utf-8")
    run(output, "--networks", "digits-mlp", "--algorithms", "exact")
    row = json.loads(kept.read_text(encoding="utf-8"))["rows"]["digits-mlp"]["exact"]
    assert row["settings"] == {}
    assert row["accuracy"] > 10


def test_what_has_no_time_or_no_data_is_said(tmp_path: Path, capsys) -> None:
    output = tmp_path / "page.md"
    text = run(output, "--networks", "digits-mlp", "mnist-mlp", "--time-limit", "0", "--data", str(tmp_path))
    word = f"no mnist_train.npz and no mnist_test.npz in {tmp_path}"
    assert f"mnist-mlp is left out: {word}" in capsys.readouterr().err
    left = text.split("## Not run")[1]
    assert "- Digits, MLP 64-32-10: no time was left for it" in left
    assert f"- MNIST, 10,000 of the training images, MLP 784-128-128-128-10: {word}" in left
    assert "| 77.75 | [arXiv:2605.31022](https://arxiv.org/abs/2605.31022) | not run: days of CPU |" in text
