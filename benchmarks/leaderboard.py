"""All inference algorithms on the same networks, data and seeds: accuracy, closeness to backpropagation, cost.

python benchmarks/leaderboard.py [--seeds N] [--networks NAME …] [--algorithms NAME …] [--data FOLDER]
                                 [--time-limit SECONDS] [--again] [--prices] [--page-only] [--output FILE]

Rows are kept in a .json beside the output, docs/leaderboard.md, each as soon as it is done; those that are there are
not measured again, unless with fewer seeds. Networks whose data is absent are left out with a word. --prices trains
nothing, and measures what each missing row would cost instead.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))  # the loaders of data are those of the paper's experiments

from leaderboard_page import page  # noqa: E402
from leaderboard_rows import ENTRIES, Entry, OutOfTime, entries, example, needs, price, trained  # noqa: E402
from leaderboard_tasks import TASKS  # noqa: E402
from paper.data import BESIDE, DataAbsent  # noqa: E402

SLOW = ("fashion-32", "vgg5")
"""Run when named."""


def missing(row: dict[str, Any] | None, entry: Entry, seeds: int, epochs: int, again: bool) -> bool:
    """Whether a row is to be measured: it is not there, or with other settings or epochs, or with fewer seeds."""
    if row is None or again or "flops" not in row:
        return True
    return (row.get("settings"), row.get("epochs")) != (entry.settings, epochs) or row["seeds"] < seeds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [e.algorithm for e in ENTRIES]
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=TASKS, default=[n for n in TASKS if n not in SLOW])
    parser.add_argument("--algorithms", nargs="*", choices=names, default=names)
    parser.add_argument("--data", type=Path, default=BESIDE)
    parser.add_argument("--time-limit", type=float, default=math.inf)
    parser.add_argument("--again", action="store_true", help="measure what is there anew")
    parser.add_argument("--prices", action="store_true", help="measure what missing rows would cost, and train none")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows that are there")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "leaderboard.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = options.output.with_suffix(".json")
    store = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"rows": {}, "absent": {}}
    store.setdefault("prices", {})
    deadline = time.monotonic() + options.time_limit
    for name in () if options.page_only else options.networks:
        (priced if options.prices else measure)(name, options, store, deadline, kept)
    options.output.write_text(page(store["rows"], store["absent"], store["prices"]), encoding="utf-8")


def save(store: dict[str, Any], kept: Path) -> None:
    """All rows, as they are so far."""
    kept.write_text(json.dumps(store, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def priced(name: str, options: argparse.Namespace, store: dict[str, Any], deadline: float, kept: Path) -> None:
    """What one network's missing rows would cost, each saved as soon as it is known."""
    task, rows, prices = TASKS[name], store["rows"].get(name, {}), store["prices"].setdefault(name, {})
    try:
        x, y, batches = example(task, options.data)
    except DataAbsent as e:
        print(f"{name} is left out: {e}", file=sys.stderr)
        return
    for entry in entries(name):
        known = prices.get(entry.algorithm, {}).get("settings") == entry.settings and not options.again
        if entry.algorithm not in options.algorithms or entry.algorithm in rows or known:
            continue
        if time.monotonic() > deadline:
            return
        prices[entry.algorithm] = price(task, entry, x, y, batches)
        save(store, kept)
        print(f"{name}, {entry.algorithm}: {prices[entry.algorithm]['milliseconds']} ms a step", flush=True)


def measure(name: str, options: argparse.Namespace, store: dict[str, Any], deadline: float, kept: Path) -> None:
    """One network's rows, each saved as soon as it is done."""
    task, rows = TASKS[name], store["rows"].setdefault(name, {})
    try:
        data = task.data(options.data)
    except DataAbsent as e:
        store["absent"][name] = str(e)
        save(store, kept)
        print(f"{name} is left out: {e}", file=sys.stderr)
        return
    store["absent"].pop(name, None)
    for entry in entries(name):
        row = rows.get(entry.algorithm)
        if entry.algorithm not in options.algorithms:
            continue
        if not missing(row, entry, options.seeds, task.epochs, options.again):
            continue
        if time.monotonic() > deadline:
            return
        try:
            found = {**needs(task, entry, data), **trained(task, entry, data, options.seeds, deadline)}
        except OutOfTime:
            print(f"{name}, {entry.algorithm}: no time was left", file=sys.stderr)
            return
        rows[entry.algorithm] = {"settings": entry.settings, **found}
        store["prices"].get(name, {}).pop(entry.algorithm, None)
        save(store, kept)
        print(f"{name}, {entry.algorithm}: {found['accuracy']:.2f} %, {found['milliseconds']} ms", flush=True)


if __name__ == "__main__":
    main()
