"""The leaderboard keeps each row, measures none twice, and says what did not run."""

import json
from dataclasses import replace
from pathlib import Path

import leaderboard
import pytest
from leaderboard_page import page
from leaderboard_rows import ENTRIES, example
from leaderboard_tasks import TASKS
from paper.data import DataAbsent


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
    text = page({"digits-mlp": {"alm": {**row, "local": True}}, "residual-8": deep}, {}, {})
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
    assert "| 77.75 | [arXiv:2605.31022](https://arxiv.org/abs/2605.31022) | not run |" in text


def test_a_row_that_is_not_run_says_what_it_would_cost(tmp_path: Path) -> None:
    output = tmp_path / "page.md"
    run(output, "--networks", "digits-mlp", "--algorithms", "exact", "strict", "--prices")
    kept = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["prices"]["digits-mlp"]
    assert kept["strict"]["steps"] == 23
    assert kept["strict"]["milliseconds"] > 0
    price = kept["strict"] | {"milliseconds": 1234.5}
    known = {"digits-mlp": {"strict": price}, "vgg5": {"strict": price}, "residual-8": {"strict": price}}
    row = {"cosines": [1, 1], "accuracy": 90, "error": None, "seeds": 1, "ratio": 2, "commit": "a"}
    text = page({"digits-mlp": {"exact": row}}, {"vgg5": "no data"}, known)
    assert "| not run: 1.23 s × 23 steps, 28.4 s a seed |" in text
    assert "| not run: 1.23 s × 23 steps, 28.4 s a seed; no data |" in text
    assert "- Digits, residual network, 8 blocks of 32: a seed would take 28.4 s by `strict`" in text
    text = run(output, "--networks", "digits-mlp", "--algorithms", "strict")
    assert "strict" not in json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))["prices"]["digits-mlp"]
    assert " | not run: " not in next(line for line in text.splitlines() if line.startswith("| `strict`"))


def test_absent_data_is_stood_in_for_where_a_step_is_timed(tmp_path: Path) -> None:
    for name, batches in (("fashion-32", 938), ("vgg5", 782)):
        x, y, count = example(TASKS[name], tmp_path)
        assert count == batches
        assert TASKS[name].build()(x[:2]).shape == (2, 10)
        assert len(x) == len(y)
    with pytest.raises(DataAbsent):
        example(TASKS["mnist-mlp"], tmp_path)


def test_a_row_of_more_seeds_is_not_measured_again() -> None:
    entry = next(e for e in ENTRIES if e.algorithm == "exact")
    row = {"settings": {}, "epochs": 1, "seeds": 3, "flops": 1.0}
    assert not leaderboard.missing(row, entry, 1, 1, False)
    assert leaderboard.missing(row, entry, 4, 1, False)
    assert leaderboard.missing(row, entry, 1, 1, True)
