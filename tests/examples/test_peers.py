"""The comparison with other libraries: whose time stands beside whose, and what becomes of one that fails."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import peers
import pytest

ROWS = {
    "eager": peers.Row("", 0.001, 1.0, 0.0),
    "pccompile": peers.Row("", 0.004),
    "fabricpc": peers.Row("fabricpc 0.6.0", 0.002, 0.2, 0.2),
    "jpc": peers.Row("jpc at 7d6cc05", 0.002, 2e-6, 2e-6),
    "pcx": peers.Row("pcx 0.6.3", failure="not installed: no network"),
    "before": peers.Row("", 0.003, 0.15, 0.0),
    "deepity": peers.Row("pydeepity 0.1.0a3", 0.005, 0.16, 3e-6),
}
OWN = ("eager", "pccompile", "module", "torch", "before")


def test_only_equal_gradients_are_timed_beside_each_other():
    assert peers.table(ROWS, "pccompile").splitlines()[2:] == [
        "| pccompile, the generated file | 4.00 | 4.0 |  |  |",
        "| FabricPC | not compared: something else is computed |  | 2e-01 | fabricpc 0.6.0 |",
        "| JPC | 2.00 | 2.0 | 2e-06 | jpc at 7d6cc05 |",
        "| PCX | | | not installed: no network | pcx 0.6.3 |",
    ]
    assert peers.table(ROWS, "before").splitlines()[2:] == [
        "| torch by hand, of these equations | 3.00 | 3.0 |  |  |",
        "| Deepity | 5.00 | 5.0 | 3e-06 | pydeepity 0.1.0a3 |",
    ]
    assert "up to 16% from those" in " ".join(peers.page(ROWS).split())


@pytest.mark.slow
def test_own_adapters_agree_and_others_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "lost", replace(peers.PEERS["torch"], adapter="no_such_adapter"))
    monkeypatch.setitem(peers.PEERS, "absent", replace(peers.PEERS["jax"], packages=("jax",)))
    problem = peers.problem((12, 8, 8, 3), batch=5, steps=4, rate=0.2)
    absent = {"absent": str(tmp_path / "nowhere")}
    rows = peers.measured((*OWN, "lost", "absent"), problem, tmp_path, absent, rounds=2, count=1)
    assert list(rows) == [*OWN, "lost", "absent"]
    assert all(rows[name].seconds > 0 for name in OWN)
    assert max(rows[name].to_ours for name in ("pccompile", "module", "torch")) < 1e-5
    assert min(rows[name].to_ours for name in ("eager", "before")) > 1e-2
    for name, start, word in (("lost", "failed: ", "no_such_adapter"), ("absent", "not installed: ", "nowhere")):
        assert rows[name].failure.startswith(start)
        assert word in rows[name].failure


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_only_the_processes_of_peers_are_held_to_one_core():
    say = "import os, sys; print(sorted(os.sched_getaffinity(0)))"
    alone = subprocess.run([sys.executable, "-c", peers.ONE_CORE, sys.executable, "-c", say], capture_output=True)
    imported = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; import peers; {say}"], capture_output=True
    )
    cores = sorted(os.sched_getaffinity(0))
    assert alone.stdout.decode().strip() == str(cores[:1])
    assert imported.stdout.decode().strip() == str(cores)


def test_difference_is_that_of_the_worst_parameter():
    ones = np.ones(4, np.float32)
    assert peers.difference([ones, 3 * ones], [ones, 2 * ones]) == 0.5
