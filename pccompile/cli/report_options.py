"""The options that ask what inference does with a model: each prints one report, as text or as JSON."""

from __future__ import annotations

import argparse
from typing import Any

REPORTS = {
    "spectrum": "measure the eigenvalues that bound the rates of inference on one batch",
    "regime": "tell how far inference goes: gradients against backprop and equilibrium",
    "certify-locality": "prove on the program how far news travels in a step; exit code 3 where it is not local",
    "convergence": "measure how far inference is from its end after 1, 2, 4 … steps, against what is predicted",
    "asynchronous": "run vertex by vertex in random order, with delays, lost messages and own rates: what that costs",
    "cost": "count products, sequential depth, messages and memory of a step against backprop's",
}
"""Each option with its help."""


def report_options(group: Any) -> None:
    """One option for each report."""
    for name, text in REPORTS.items():
        group.add_argument(f"--{name}", action="store_true", help=text)


def report_asked(options: argparse.Namespace) -> str | None:
    """The report that a command line asks for."""
    return next((name for name in REPORTS if getattr(options, name.replace("-", "_"))), None)


def report_checks(options: argparse.Namespace, circuit: bool) -> list[tuple[Any, str]]:
    """What is wrong with a command line that asks for a report."""
    name = report_asked(options)
    return [
        (name and options.output, f"--{name} writes nothing: leave -o out"),
        (name and circuit, f"--{name} does not go with circuits"),
    ]
