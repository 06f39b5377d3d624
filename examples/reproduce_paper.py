"""The experiments of "Predictive Coding Approximates Backprop along Arbitrary Computation Graphs" (arXiv:2006.04182).

python examples/reproduce_paper.py [--small | --full] [--data FOLDER] [--experiments scalar cnn rnn lstm]
                                   [--images svhn|cifar10] [--output FOLDER] [--page FILE] [--page-only]

Writes results.json and figures into the folder, docs/paper by default, and the page docs/paper.md made of them.
Experiments whose data is absent are named and left out; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from paper import experiments
from paper.data import DataAbsent, folder_of
from paper.figures import draw
from paper.page import page
from paper.settings import SETTINGS
from paper.training import compare

ROOT = Path(__file__).parents[1]
NAMES = ("scalar", "cnn", "rnn", "lstm")


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One experiment's results. Raises DataAbsent."""
    if name == "scalar":
        return experiments.scalar()
    setting = SETTINGS[options.size][name]
    if options.seeds:
        setting = replace(setting, seeds=options.seeds)
    folder = folder_of(options.data)
    if name == "cnn":
        experiment = experiments.images(folder, setting, options.images)
    else:
        load = {"rnn": experiments.name_origins, "lstm": experiments.next_character}[name]
        experiment = load(folder, setting)
    return {**compare(experiment, lambda line: print(line, flush=True)), "size": options.size}


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for, keep the results of what was not, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", dest="size", action="store_const", const="small", help="minutes (the default)")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="as published: days of CPU")
    parser.set_defaults(size="small")
    parser.add_argument("--data", type=Path, help="a folder with the data; by default ../shared/data by the checkout")
    parser.add_argument("--experiments", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--images", choices=("svhn", "cifar10"), default="cifar10")
    parser.add_argument("--seeds", type=int, help="instead of 5")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "paper")
    parser.add_argument("--page", type=Path, help="the page; by default beside the folder, with its name")
    parser.add_argument("--page-only", action="store_true", help="write figures and page anew from results.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    absent = []
    for name in () if options.page_only else options.experiments:
        try:
            results[name] = measure(name, options)
        except DataAbsent as e:
            absent.append(name)
            print(f"{name} did not run. {e}", file=sys.stderr)
            continue
        kept.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in results:
        draw(name, results[name], options.output / f"{name}.png")
    target = options.page or options.output.with_suffix(".md")
    target.write_text(page(results, options.output.name), encoding="utf-8")
    print(f"page: {target}")
    return 1 if absent else 0


if __name__ == "__main__":
    raise SystemExit(main())
