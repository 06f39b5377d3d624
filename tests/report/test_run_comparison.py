"""Two ways of training: the paired test is scipy's own of the differences, and the effect what its formula says."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import pccompile
from pccompile.cli import main


def runs(shift: float, seeds: int) -> list[dict[str, list[tuple[int, float]]]]:
    found = []
    for seed in range(seeds):
        noise = np.random.default_rng([seed, int(10 * shift)])
        start = np.random.default_rng(seed).normal()
        found.append({"loss": [(s, start + shift + 0.1 * noise.normal()) for s in (0, 10, 20)], "odd": [(0, 1.0)]})
    return found


def test_runs_pair_by_their_last_common_step() -> None:
    a, b = runs(0.0, 8), runs(0.5, 8)
    b[3]["loss"] = b[3]["loss"][:2]
    (loss, odd) = pccompile.compare_runs(a, b).differences
    first = [r["loss"][1 if i == 3 else 2][1] for i, r in enumerate(a)]
    second = [r["loss"][-1][1] for r in b]
    differences = [y - x for x, y in zip(first, second, strict=True)]
    assert loss.pairs == 8
    assert loss.t_test == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert loss.wilcoxon == 2 / 2**8  # all of 8 differences on one side
    assert loss.effect == pytest.approx(statistics.mean(differences) / statistics.stdev(differences))
    assert odd.difference == 0
    assert np.isnan([odd.wilcoxon, odd.t_test, odd.effect]).all()


def test_one_run_each_pairs_by_step_and_says_so() -> None:
    found = pccompile.compare_runs(runs(0.0, 1), runs(0.5, 1))
    assert [(d.name, d.pairs) for d in found.differences] == [("loss", 3)]
    assert "not independent" in str(found)


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(pccompile.CompileError, match="2 runs do not pair with 3"):
        pccompile.compare_runs(runs(0, 2), runs(0, 3))
    with pytest.raises(pccompile.CompileError, match="no number that both sides have"):
        pccompile.compare_runs([{"a": [(0, 1.0)]}], [{"b": [(0, 1.0)]}])


def test_watch_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for side, shift in (("a", 0.0), ("b", 0.5)):
        for i, curves in enumerate(runs(shift, 3)):
            path = tmp_path / f"{side}{i}.jsonl"
            path.write_text("".join(json.dumps({"step": s, "loss": v}) + "\n" for s, v in curves["loss"]))
            names.append(str(path))
    assert main(["watch", *names[:3], "--against", *names[3:], "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert (found["name"], found["pairs"]) == ("loss", 3)
    assert main(["watch", *names]) == 1
    assert "--against" in capsys.readouterr().err
