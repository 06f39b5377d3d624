"""The driver of the coverage suites, and what the tests of each suite share."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suites.rows import Row, read

ROOT = Path(__file__).parents[2]


def _load() -> Any:
    """`benchmarks/coverage.py`, under a name that nothing else has."""
    name = "coverage_driver"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "coverage.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


DRIVER = _load()


def table(suite: str) -> list[Row]:
    """The rows that docs/coverage/<suite>.csv keeps."""
    return read(ROOT / "docs" / "coverage" / f"{suite}.csv")


def recorded() -> list[str]:
    """The suites that have a table."""
    return [s for s in DRIVER.SUITES if (ROOT / "docs" / "coverage" / f"{s}.csv").exists()]


def fallen(suite: str) -> dict[str, tuple[float, float]]:
    """The figures of a suite's table that are below their floor: the figure and the floor."""
    module = DRIVER.suite_of(suite)
    figures = module.figures(table(suite))
    return {k: (figures[k], floor) for k, floor in module.FLOORS.items() if figures[k] < floor}


def broken(suite: str, names: Sequence[str]) -> list[Row]:
    """The rows of these cases that do not pass although the table says that they do."""
    passing = {(r.name, r.kind) for r in table(suite) if r.status == "pass"}
    return [r for r in DRIVER.run(suite, names) if r.status != "pass" and (r.name, r.kind) in passing]


def sampled(suite: str, seconds: float, seed: int) -> list[str]:
    """Cases drawn at random until their recorded times add up to `seconds`; none takes more than a fifth of it."""
    cost: dict[str, float] = {}
    for r in table(suite):
        cost[r.name] = cost.get(r.name, 0.0) + r.seconds
    names = sorted(name for name, spent in cost.items() if spent <= seconds / 5)
    random.Random(seed).shuffle(names)
    chosen: list[str] = []
    for name in names:
        if seconds <= 0:
            break
        chosen.append(name)
        seconds -= cost[name] + 0.01
    return chosen


SEED = 7
"""Of the samples that are run always."""


def today() -> int:
    """A seed that changes every day, for the long suites."""
    return int(time.time() // 86400)
