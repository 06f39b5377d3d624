"""What training reaches where rate, steps and penalty are "auto": every algorithm on the digits, one seed; and
whether inference diverges on random networks.

python benchmarks/automatic.py [--output docs/automatic_rates.md] [--networks NAME …] [--algorithms NAME …] [--limit S]
                               [--count N]

Rows that are named are measured and the others kept, in a file of the same name that ends in .json; then the page is
written. Where a row is more than a percent below backpropagation, what it lacks is measured too: the same algorithm
with the loss weighted by 1/100, at which S, the curvature of the loss in displacements of predictions, is small, so
that the equilibrium of inference is close to the forward pass. A temperature is weighted by the square of that, so that
noise is as small a part of the errors as before.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # where the tasks have their loaders of data
from leaderboard_rows import BATCH, Data, OutOfTime, commit, summed, timed, train
from leaderboard_tasks import TASKS, Task
from random_networks import SETTINGS as OF_RANDOM_NETWORKS
from random_networks import joined, survey

import pccompile
from pccompile.algorithms import ALGORITHMS as KNOWN

AUTO: dict[str, Any] = {"rate": "auto", "steps": "auto"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "zil": {},
    "fixed-prediction": AUTO,
    "meta-pcn": AUTO,
    "error-optimization": AUTO,
    "strict": AUTO,
    "nudged": AUTO,
    "incremental": AUTO,
    "langevin": {"rate": "auto", "temperature": 1e-4},
    "alm": {**AUTO, "penalty": "auto"},
}
"""The quickest first."""
NETWORKS = ("digits-mlp", "digits-cnn")
RANDOM = "random"
"""The name of the table of random networks, beside those of networks that are trained."""
PORTION = 20
"""After so many of them a survey is saved."""
WEAK = 0.01
"""The weight of the loss in a second measurement."""
CLOSE = 1.0
"""Percent of test accuracy."""
Row = dict[str, Any]


def weak(output: Tensor, target: Tensor) -> Tensor:
    """The loss with a small weight: Adam, which ignores the scale of gradients, learns as fast from it."""
    return WEAK * summed(output, target)


def compiled(model: Any, x: Tensor, algorithm: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The model at automatic settings."""
    settings = dict(ALGORITHMS[algorithm])
    if loss is weak and "temperature" in settings:
        settings["temperature"] *= WEAK**2
    return pccompile.compile(model, (x,), algorithm=algorithm, loss=loss, check=False, **settings)


def numbers(pc: Any, algorithm: str) -> str:
    """The automatic settings as they are now."""
    arguments = pc.compiled.program.arguments
    names = [k for k in ("rate", "steps", "penalty") if k in arguments and ALGORITHMS[algorithm].get(k) == "auto"]
    return ", ".join(f"{k} {arguments[k]:.3g}" if k != "steps" else f"{k} {arguments[k]}" for k in names)


def seconds_of_a_step(task: Task, data: Data, algorithm: str) -> tuple[float, str]:
    """CPU of a training step once rates are chosen, and what was chosen: the third, since the second measures them."""
    torch.manual_seed(0)
    model, (x, y) = task.build(), (data[0][:BATCH], data[1][:BATCH])
    pc, optimizer = compiled(model, x, algorithm, summed), torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        timed(pc.train_step, x, y, optimizer)
    return timed(pc.train_step, x, y, optimizer), numbers(pc, algorithm)


def trained(
    task: Task,
    data: Data,
    algorithm: str,
    epochs: int,
    loss: Any = summed,
    normalise: bool = True,
    limit: float = math.inf,
) -> Row:
    """Test accuracy in %, milliseconds of a step, what was chosen at first and in the end, and the curvature S.

    normalise: whether weights are normalised after each step, where that is a part of the algorithm. limit: seconds
    after which training is given up; then no accuracy is in the row, and what was chosen last.
    """
    torch.manual_seed(0)
    model, x, y = task.build(), data[0][:BATCH], data[1][:BATCH]
    pc = compiled(model, x, algorithm, loss)
    fresh = compiled(copy.deepcopy(model), x, algorithm, loss)
    fresh.loss(x, target=y)
    before = curvature(fresh, x, y)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            accuracy, seconds = train(model, pc, data, epochs, 0, time.monotonic() + limit, normalise)
        except OutOfTime:
            step = timed(pc.train_step, x, y, torch.optim.Adam(model.parameters(), 1e-3))
            found = {"first": numbers(fresh, algorithm), "last": numbers(pc, algorithm)}
            return {**found, "milliseconds": round(1e3 * step, 2), "given_up": limit}
    lines = [str(w.message) for w in told if "leaves its bound" in str(w.message)]
    return {
        "accuracy": 100 * accuracy,
        "milliseconds": round(1e3 * seconds, 2),
        "first": numbers(fresh, algorithm),
        "last": numbers(pc, algorithm),
        "anew": sum("chosen anew" in line for line in lines),
        "left": [line for line in lines if "chosen anew" not in line],
        "curvature": [before, curvature(pc, x, y)],
    }


def curvature(pc: Any, x: Tensor, y: Tensor) -> float | None:
    """λ_max(S) on the first batch; None where inference descends nothing."""
    if KNOWN[pc.options.algorithm].automatic is None:
        return None
    quantities = pc.analyse(x, target=y, kinds=("spectrum",)).spectrum.quantities
    return float(quantities["λmax(S)"].value) if quantities else None


def measured(task: Task, algorithm: str, epochs: int, limit: float, reference: float | None) -> Row:
    """A row; what it lacks where it is below backpropagation."""
    data = task.data(Path())
    batches = epochs * math.ceil(len(data[0]) / BATCH)
    seconds, chosen = seconds_of_a_step(task, data, algorithm)
    if seconds * batches > limit:
        return {"first": chosen, "milliseconds": round(1e3 * seconds, 2), "batches": batches}
    row = trained(task, data, algorithm, epochs, limit=limit)
    if "accuracy" not in row:
        return row
    if reference is not None and row["accuracy"] < reference - CLOSE and KNOWN[algorithm].automatic is not None:
        row["weak"] = trained(task, data, algorithm, epochs, weak)["accuracy"]
    if algorithm == "meta-pcn":
        row["plain"] = trained(task, data, algorithm, epochs, normalise=False)["accuracy"]
    return row


def reason(algorithm: str, row: Row, rows: dict[str, Row]) -> str:
    """Why a row is not within a percent of backpropagation; nothing where it is, or is above it."""
    if "given_up" in row:
        return f"given up after {row['given_up']:.0f} s: steps grow with the weights; the time is that of a last batch"
    if "accuracy" not in row:
        minutes = row["batches"] * row["milliseconds"] / 6e4
        return (
            f"not trained: {row['milliseconds']:.0f} ms of CPU a batch, {minutes:.0f} min for {row['batches']} batches"
        )
    if row["accuracy"] >= rows["exact"]["accuracy"] - CLOSE:
        return ""
    if algorithm == "meta-pcn":
        return f"its weights are normalised after each step; without that {row['plain']:.2f}"
    before, after = row["curvature"]
    went = f"λmax(S) goes from {before:.2g} to {after:.2g}"
    if row["weak"] >= rows["exact"]["accuracy"] - CLOSE:
        return (
            f"it learns what lowers the energy of the equilibrium, not the loss: {went}; loss / 100: {row['weak']:.2f}"
        )
    return f"that it learns the energy of the equilibrium is a part only: {went}; loss / 100: {row['weak']:.2f}"


def page(store: dict[str, dict[str, Row]], epochs: int) -> str:
    """All rows, and where they come from."""
    lines = [HEAD.format(epochs=epochs)]
    for network, rows in ((name, store[name]) for name in NETWORKS if name in store):
        lines += [f"## {TASKS[network].title}", "", COLUMNS]
        for algorithm in (a for a in ALGORITHMS if a in rows):
            row = rows[algorithm]
            accuracy = f"{row['accuracy']:.2f}" if "accuracy" in row else "–"
            cells = [f"`{algorithm}`", row["first"] or "–", row.get("last") or "–", str(row.get("anew", "–")), accuracy]
            cells += [f"{row['milliseconds']:.1f}", reason(algorithm, row, rows)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *origin(rows)]
    lines += [*random_table(store[RANDOM]), ""] if RANDOM in store else []
    numbered = [f"`{name}`" for name, a in KNOWN.items() if name not in ALGORITHMS and a.mirrors is not None]
    lines += [f"Without automatic settings, and so without a row: {', '.join(numbered)}.", ""] if numbered else []
    return "\n".join(lines)


def surveys(algorithm: str, count: int) -> Iterator[Row]:
    """The survey of so many random networks, and those of fewer on the way to it."""
    row = survey(algorithm, range(min(PORTION, count)))
    yield row
    for first in range(PORTION, count, PORTION):
        row = joined(row, survey(algorithm, range(first, min(first + PORTION, count))))
        yield row


def origin(rows: dict[str, Row]) -> list[str]:
    """Where a table comes from: its commits, and what else is known of some rows."""
    commits = dict.fromkeys(row["commit"] for row in rows.values() if "commit" in row)
    early = ", ".join(f"`{a}`" for a in ALGORITHMS if a in rows and "commit" not in rows[a])
    lines = [f"Measured at commit {', '.join(commits)}{f'; earlier: {early}' if early else ''}.", ""]
    notes = dict.fromkeys(row["note"] for row in rows.values() if "note" in row)
    return lines + [line for note in notes for line in (note, "")]


def random_table(rows: dict[str, Row]) -> list[str]:
    """How many random networks diverged, and what was told of each."""
    lines = [RANDOM_HEAD, "", RANDOM_COLUMNS]
    for algorithm in (a for a in OF_RANDOM_NETWORKS if a in rows):
        row = rows[algorithm]
        names = ", ".join(k for k, v in OF_RANDOM_NETWORKS[algorithm].items() if v == "auto") or "–"
        cells = (f"`{algorithm}`", names, row["networks"], len(row["diverged"]), row["anew"], row["seconds"])
        lines.append(f"| {' | '.join(map(str, (*cells, row['commit'])))} |")
    told = [(a, seed, why) for a, row in rows.items() for seed, why in row["diverged"].items()]
    return lines + ([""] if told else []) + [f"- `{a}`, network {seed}: {why}" for a, seed, why in told]


HEAD = """# Training at automatic rates

Test accuracy in percent on scikit-learn's digits (360 images) after {epochs} epochs of Adam at 10⁻³, batches of 64,
loss summed, one seed, one thread; `rate="auto"`, `steps="auto"` and for `alm` `penalty="auto"`. `langevin` has 50 + 100
steps at temperature 10⁻⁴. "Chosen anew" counts how often a rate came too near to its bound while weights grew. Every
row is within a percent of backpropagation (`exact`) or above it, or the last column says what it lacks. Made by
`python benchmarks/automatic.py`. [algorithms.md](algorithms.md) says how rates are chosen.
"""
COLUMNS = (
    "| algorithm | chosen at first | in the end | chosen anew | test accuracy | ms a batch | below, since |\n"
    "|---|---|---|---|---|---|---|"
)
RANDOM_HEAD = """## Random networks

One to five layers of one to eleven units that read up to three earlier ones, with products, skips and eight
activations, weights of 0.2 to 5 times 1/√inputs, squared error or cross-entropy:
[random_networks.py](../benchmarks/random_networks.py). Each takes two steps of Adam at 10⁻². It has diverged where a
loss, a gradient or a parameter is no finite number, where no rate was right, or where inference left its bound and no
other rate was chosen. `langevin` at temperature 10⁻³, with a burn-in of 10 steps. Made by
`python benchmarks/automatic.py --networks random`."""
RANDOM_COLUMNS = (
    "| algorithm | automatic | networks | diverged | rate chosen anew in | s of CPU | commit |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure the rows that are named, and write the page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "automatic_rates.md")
    p.add_argument("--networks", nargs="*", default=[*NETWORKS, RANDOM], choices=[*NETWORKS, RANDOM])
    p.add_argument("--algorithms", nargs="*", default=list(ALGORITHMS), choices=ALGORITHMS)
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--limit", type=float, default=200.0, help="seconds that training of a row may take")
    p.add_argument("--count", type=int, default=200, help="random networks for each algorithm")
    options = p.parse_args()
    torch.set_num_threads(1)
    kept = options.output.with_suffix(".json")
    store: dict[str, dict[str, Row]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for network in options.networks:
        rows = store.setdefault(network, {})
        for algorithm in options.algorithms:
            if network == RANDOM and algorithm not in OF_RANDOM_NETWORKS:
                continue
            reference = rows.get("exact", {}).get("accuracy")
            if network == RANDOM:
                found = surveys(algorithm, options.count)
            else:
                found = iter([measured(TASKS[network], algorithm, options.epochs, options.limit, reference)])
            for row in found:
                rows[algorithm] = {**row, "commit": commit()}
                kept.write_text(json.dumps(store, indent=1) + "\n", encoding="utf-8")
            print(network, algorithm, rows[algorithm], file=sys.stderr, flush=True)
    options.output.write_text(page(store, options.epochs), encoding="utf-8")


if __name__ == "__main__":
    main()
