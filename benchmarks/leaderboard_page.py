"""docs/leaderboard.md, made of the rows that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leaderboard_rows import BATCH, ENTRIES, Entry
from leaderboard_tasks import TASKS

HEAD = f"""\
# Leaderboard

Every algorithm on the same networks, data, order of batches, optimizer (Adam, 1e-3, batches of {BATCH}) and seeds, with
the loss summed over the batch. Settings are one choice each, not tuned by network; `incremental` takes an optimizer
step at each inference step. Made by `make leaderboard`, which measures the rows that are missing and keeps those in
leaderboard.json; `--time-limit SECONDS` ends earlier, `--data FOLDER` has the data that is not scikit-learn's.

- accuracy: on held-out data, ± the standard error over the seeds; as many seeds as stand behind it
- cosine: of the first gradient to backpropagation's, at the first and at the last weight, seed 0
- q = rate · steps · λmax of what inference descends, at the first batch: far below 1 it has hardly begun
- products: floating-point operations in matrix products and convolutions of a step, as a multiple of backpropagation's
- hops: how far news travels in an inference step, or in all of inference where it takes no steps; local: no where that
  grows with the depth of these networks
- ms: CPU time of a training step on one thread; time: as a multiple of backpropagation's beside it
"""
COLUMNS = (
    "algorithm",
    "settings",
    "accuracy, % (seeds)",
    "cosine, first",
    "last",
    "q",
    "products",
    "hops",
    "local",
    "ms",
    "time",
)
PUBLISHED = (
    ("fashion-32", "2605.31022", {"backpropagation": 78.66, "strict": 68.13, "alm": 77.75}),
    ("vgg5", "2505.20137", {"backpropagation": 87.95, "strict": 84.66, "error-optimization": 88.27}),
)
"""The task whose setting it is nearest to, the source on arXiv, and test accuracies in %."""
Rows = Mapping[str, Mapping[str, Any]]


def page(rows: Mapping[str, Rows], absent: Mapping[str, str]) -> str:
    """The page. rows: by task and algorithm; absent: by task, the word about its data."""
    shown = [name for name in TASKS if rows.get(name) and name not in {task for task, _, _ in PUBLISHED}]
    far = {a for table in rows.values() for a, row in table.items() if not row.get("local", True)}
    parts = [
        HEAD.rstrip(),
        *("\n".join(_table(name, rows[name], far)) for name in shown),
        "\n".join(_published(rows, absent)),
    ]
    left = [n for n in TASKS if not rows.get(n) and n not in {task for task, _, _ in PUBLISHED}]
    if left:
        lines = (f"- {TASKS[n].title}: {absent.get(n, 'no time was left for it')}" for n in left)
        parts.append("\n".join(["## Not run", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _table(name: str, rows: Rows, far: set[str]) -> Iterator[str]:
    """far: algorithms that are not local on some network."""
    task = TASKS[name]
    yield f"## {task.title}"
    yield ""
    yield f"{task.epochs} epochs."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for entry in ENTRIES:
        yield f"| {' | '.join(_cells(entry, rows.get(entry.algorithm, {}), far))} |"
    commits = dict.fromkeys(row["commit"] for row in rows.values())
    yield ""
    yield f"Measured at commit {', '.join(commits)}."


def _cells(entry: Entry, row: Mapping[str, Any], far: set[str]) -> tuple[str, ...]:
    base = entry.algorithm == "backpropagation"
    name = "backpropagation (autograd)" if base else f"`{entry.algorithm}`"
    settings = "" if base else entry.text
    if not row:
        return (name, settings, "not run", *[""] * 8)
    first, last = row["cosines"]
    q = row.get("q")
    return (
        name,
        settings,
        accuracy(row),
        f"{first:.4f}",
        f"{last:.4f}",
        "" if q is None else f"{q:.2g}",
        f"{row['flops']:.3g}" if "flops" in row else "",
        str(row.get("hops", "")),
        "" if base else ("no" if entry.algorithm in far else "yes"),
        f"{row['milliseconds']:.1f}" if "milliseconds" in row else "",
        f"{row['ratio']:.1f}",
    )


def accuracy(row: Mapping[str, Any]) -> str:
    """Mean ± standard error, and the number of seeds."""
    spread = "" if row["error"] is None else f" ± {row['error']:.2f}"
    return f"{row['accuracy']:.2f}{spread} ({row['seeds']})"


def _published(rows: Mapping[str, Rows], absent: Mapping[str, str]) -> Iterator[str]:
    yield "## Published numbers"
    yield ""
    yield "Test accuracies, %, as their papers give them; optimizers and schedules there are their own."
    yield "`python benchmarks/leaderboard.py --networks fashion-32 vgg5` is for such networks and data."
    yield ""
    yield "| network | algorithm | published | source | here |"
    yield "|---|---|---|---|---|"
    for name, source, numbers in PUBLISHED:
        for algorithm, value in numbers.items():
            row = rows.get(name, {}).get(algorithm)
            here = accuracy(row) if row else f"not run: {absent.get(name, 'days of CPU')}"
            link = f"[arXiv:{source}](https://arxiv.org/abs/{source})"
            yield f"| {TASKS[name].title} | {algorithm} | {value:.2f} | {link} | {here} |"
