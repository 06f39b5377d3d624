"""The figures: divergence against steps for the scalar function, curves with error bars for the networks."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

STYLES = ("-", "--", ":")


def draw(name: str, results: dict[str, Any], path: Path) -> None:
    """One experiment's figure, small enough to commit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if name == "scalar":
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for rate, values in results["divergence"].items():
            kept = [(n, abs(v)) for n, v in zip(results["steps"], values, strict=True) if v]
            axes.plot([n for n, _ in kept], [v for _, v in kept], ".-", linewidth=1, label=f"rate {rate}")
        axes.set(xscale="log", yscale="log", xlabel="inference steps", ylabel="|gradient − autograd's|")
        axes.legend(fontsize="x-small")
    else:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for (variant, curves), style in zip(results["variants"].items(), STYLES, strict=False):
            updates, mean, error = summary(curves, "accuracy")
            left.errorbar(updates, mean, error, fmt=style, capsize=2, linewidth=1.2, label=variant)
            if any(p["divergence"] for curve in curves for p in curve):
                updates, mean, error = summary(curves, "divergence")
                right.errorbar(updates, mean, error, fmt=style, capsize=2, linewidth=1.2, label=variant)
        left.set(xlabel="updates", ylabel="held-out accuracy")
        right.set(xlabel="updates", ylabel="‖g − g autograd‖ / ‖g autograd‖", yscale="log")
        left.legend(fontsize="x-small")
        if right.has_data():
            right.legend(fontsize="x-small")
    figure.suptitle(results["title"], fontsize="medium")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def summary(curves: list[list[dict[str, float]]], key: str) -> tuple[list[float], list[float], list[float]]:
    """Updates, means over the seeds, and their standard errors."""
    points = list(zip(*curves, strict=True))
    values = [[p[key] for p in point] for point in points]
    return [point[0]["update"] for point in points], [statistics.mean(v) for v in values], [error(v) for v in values]


def error(values: list[float]) -> float:
    """The standard error of their mean; 0 of one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
