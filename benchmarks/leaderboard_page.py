"""docs/leaderboard.md, made of the rows that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from leaderboard_rows import BATCH, Entry, entries
from leaderboard_tasks import TASKS

HEAD = f"""\
# Leaderboard

Every algorithm on the same networks, data, order of batches, optimizer (Adam, 1e-3, batches of {BATCH}) and seeds, with
the loss summed over the batch. Settings are one choice each, not tuned by network; where at that rate an algorithm
leaves its bound, `rate auto` measures one. `incremental` takes an optimizer step at each inference step. Made by
`make leaderboard`, which measures the rows that are missing and keeps those in leaderboard.json; `--time-limit SECONDS`
ends earlier, `--data FOLDER` has the data that is not scikit-learn's. A row that is not run says what a seed of it
would cost: a step's time on one thread, by `--prices`, times its steps.

- accuracy: on held-out data, ± the standard error over the seeds; as many seeds as stand behind it
- cosine: of the first gradient to backpropagation's, at the first and at the last weight, seed 0
- q = rate · steps · λmax of what inference descends, at the first batch: far below 1 it has hardly begun; at more
  than 2 for each of the steps the rate is above its bound, and where gradients become no numbers nothing is learned
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
PREFACE = """\
Test accuracies, %, as their papers give them, beside the network here that is nearest to theirs. A figure here is no
replication of theirs: it has the optimizer, the batches and the settings of inference of the tables above, which
nobody tuned for it, and weights as torch draws them.

- arXiv:2605.31022: width, depth and data are taken from there, and nothing else; here it is a chain without skips,
  trained for 5 epochs.
- arXiv:2505.20137: its code (github.com/cgoemaere/error_based_PC) has GELU, batches of 256, weight decay, rates of
  learning that were searched for each algorithm, images that are altered for training, 25 epochs and five seeds; its
  error optimization takes 5 steps of 0.001, its strict inference 8 of 0.027 where the loss is squared. Here are ReLU,
  batches of 64, no weight decay, images as they are, 25 epochs, 5 steps of 0.1 and 20 of 0.1; and CIFAR-10 is a lossy
  JPEG copy.

`python benchmarks/leaderboard.py --networks fashion-32 vgg5` runs them."""
Rows = Mapping[str, Mapping[str, Any]]


def page(rows: Mapping[str, Rows], absent: Mapping[str, str], prices: Mapping[str, Rows]) -> str:
    """The page. rows, prices: by task and algorithm; absent: by task, the word about its data."""
    shown = [name for name in TASKS if rows.get(name) and name not in {task for task, _, _ in PUBLISHED}]
    far = {a for table in rows.values() for a, row in table.items() if not row.get("local", True)}
    parts = [
        HEAD.rstrip(),
        *("\n".join(_table(name, rows[name], prices.get(name, {}), far)) for name in shown),
        "\n".join(_published(rows, absent, prices)),
    ]
    left = [n for n in TASKS if not rows.get(n) and n not in {task for task, _, _ in PUBLISHED}]
    if left:
        lines = (f"- {TASKS[n].title}: {absent.get(n) or _whole(prices.get(n, {}))}" for n in left)
        parts.append("\n".join(["## Not run", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _whole(prices: Mapping[str, Mapping[str, Any]]) -> str:
    """What rows of a network would cost, as far as steps of them have been timed."""
    seeds = [f"{_duration(_seconds(price))} by `{algorithm}`" for algorithm, price in prices.items()]
    return f"a seed would take {', '.join(seeds)}" if seeds else "no time was left for it"


def _seconds(price: Mapping[str, Any]) -> float:
    return float(price["milliseconds"] * price["steps"] / 1e3)


def _duration(seconds: float) -> str:
    """In the unit that leaves a small number."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def cost(price: Mapping[str, Any] | None) -> str:
    """What a seed of a row would take, where a step of it has been timed."""
    if price is None:
        return ""
    return f": {_duration(price['milliseconds'] / 1e3)} × {price['steps']:,} steps, {_duration(_seconds(price))} a seed"


def _table(name: str, rows: Rows, prices: Rows, far: set[str]) -> Iterator[str]:
    """far: algorithms that are not local on some network."""
    task = TASKS[name]
    yield f"## {task.title}"
    yield ""
    yield f"{task.epochs} epochs."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for entry in entries(name):
        yield f"| {' | '.join(_cells(entry, rows.get(entry.algorithm, {}), prices.get(entry.algorithm), far))} |"
    commits = dict.fromkeys(row["commit"] for row in rows.values())
    yield ""
    yield f"Measured at commit {', '.join(commits)}."


def _cells(entry: Entry, row: Mapping[str, Any], price: Mapping[str, Any] | None, far: set[str]) -> tuple[str, ...]:
    base = entry.algorithm == "backpropagation"
    name = "backpropagation (autograd)" if base else f"`{entry.algorithm}`"
    settings = "" if base else entry.text
    if not row:
        return (name, settings, f"not run{cost(price)}", *[""] * 8)
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


def _published(rows: Mapping[str, Rows], absent: Mapping[str, str], prices: Mapping[str, Rows]) -> Iterator[str]:
    yield "## Published numbers"
    yield ""
    yield PREFACE
    yield ""
    yield "| network | algorithm | published | source | here |"
    yield "|---|---|---|---|---|"
    for name, source, numbers in PUBLISHED:
        for algorithm, value in numbers.items():
            row = rows.get(name, {}).get(algorithm)
            price = prices.get(name, {}).get(algorithm)
            word = f"; {absent[name]}" if name in absent else ""
            here = accuracy(row) if row else f"not run{cost(price)}{word}"
            link = f"[arXiv:{source}](https://arxiv.org/abs/{source})"
            yield f"| {TASKS[name].title} | {algorithm} | {value:.2f} | {link} | {here} |"
