"""The options about a model's inputs and weights."""

from __future__ import annotations

import argparse
from typing import Any

from pccompile.cli.circuit_options import ready


def input_options(parser: argparse.ArgumentParser) -> None:
    """What example inputs are, and what of an .onnx file is fixed, learns, or does not."""
    group = parser.add_argument_group("inputs and weights (--value, --data and --shape go together)")
    group.add_argument(
        "--shape", action="append", default=[], metavar="NAME=SIZES",
        help="an example input: x=8,3,32,32 or ids=4,16:int64",
    )  # fmt: skip
    group.add_argument(
        "--value", action="append", default=[], metavar="NAME=NUMBERS",
        help="numbers of an example input: sr=16000, x=1,2,3 or x=[[1,2],[3,4]]",
    )  # fmt: skip
    group.add_argument(
        "--data", metavar="FILE",
        help="example inputs by name, of a circuit targets too: .npz, .npy, .safetensors or .pb (default: random)",
    )  # fmt: skip
    group.add_argument(
        "--constant", action="append", default=[], metavar="NAME=NUMBERS",
        help="fix an input or an initializer of an .onnx file before all else, so that branches fold: sr=16000",
    )  # fmt: skip
    group.add_argument(
        "--train", action="append", default=[], metavar="NAME",
        help="a number in an .onnx file that was taken for a formula's learns; * stands for anything",
    )  # fmt: skip
    group.add_argument(
        "--freeze", action="append", default=[], metavar="NAME", help="a weight of an .onnx file does not learn"
    )


def input_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with options about inputs, for the kind of model that is named."""
    other = not options.model.lower().endswith(".onnx")
    unused = ready(options) and not (options.simulate or options.bits)
    return [
        *((getattr(options, n) and other, f"--{n} goes with an .onnx file") for n in ("constant", "train", "freeze")),
        *((getattr(options, n) and unused, f"--{n} goes with --simulate or --bits") for n in ("data", "value")),
    ]
