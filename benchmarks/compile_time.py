"""Seconds of CPU that compiling takes, stage by stage, from a torch module to its source.

python benchmarks/compile_time.py [names …]
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch
from models import BENCHES, ZOO
from torch import nn

import pccompile

Built = tuple[nn.Module, tuple[Any, ...]]


def bert(layers: int) -> Built:
    """An encoder of BERT-base's size (Devlin et al. 2019) with random weights, and four sentences of 64 tokens."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(num_hidden_layers=layers, attn_implementation="eager"))
    return model.train(), (torch.randint(30522, (4, 64)),)


def lstm(steps: int) -> Built:
    """The unrolled LSTM of the zoo."""
    assert steps == 50
    return BENCHES["lstm"].build(), BENCHES["lstm"].inputs()


def resnet(depth: int) -> Built:
    """A ResNet of the zoo on images of 64 by 64 pixels."""
    return ZOO[f"resnet{depth}"].build(), (torch.randn(4, 3, 64, 64),)


MODELS: dict[str, Callable[[], Built]] = {
    **{f"bert {n} layers": functools.partial(bert, n) for n in (3, 6, 12)},
    "resnet18": lambda: resnet(18),
    "resnet50": lambda: resnet(50),
    "lstm 50 steps": lambda: lstm(50),
}
STAGES = ("export", "import", "canonicalise", "insert-vertices", "derive-rules", "schedule", "emit", "check")


def measured(name: str) -> dict[str, float]:
    """Seconds of CPU by stage, what is left as "rest" and their sum; in this process, which nothing has warmed up."""
    torch.set_num_threads(1)
    model, args = MODELS[name]()
    seconds: dict[str, float] = {}

    def heard(stage: str, result: object, spent: float) -> None:
        seconds[stage] = seconds.get(stage, 0.0) + spent

    start = time.process_time()
    pccompile.compile(model, args, hook=heard)
    total = time.process_time() - start
    found = {stage: seconds.get(stage, 0.0) for stage in STAGES}
    return {**found, "rest": total - sum(found.values()), "total": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(MODELS))
    names = parser.parse_args().names or list(MODELS)
    print(f"{'seconds of CPU':16s}" + "".join(f"{stage:>17s}" for stage in (*STAGES, "rest", "total")))
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (name,))
        print(f"{name:16s}" + "".join(f"{value:17.2f}" for value in found.values()), flush=True)


if __name__ == "__main__":
    main()
