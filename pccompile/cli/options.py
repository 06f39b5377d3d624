"""The options about a model's inputs and weights, about reports, and about circuits."""

from __future__ import annotations

import argparse
from typing import Any

from pccompile.cli.numbers import bits, positive, whole
from pccompile.cli.targets import SUFFIX
from pccompile.passes.choices import DERIVATIVES, FEEDBACK


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
    program = options.model.lower().endswith(".pt2")
    return [
        *(
            (getattr(options, n) and program, f"--{n}: an exported program brings its own inputs")
            for n in ("shape", "value", "data")
        ),
        *((getattr(options, n) and other, f"--{n} goes with an .onnx file") for n in ("constant", "train", "freeze")),
        *((getattr(options, n) and unused, f"--{n} goes with --simulate or --bits") for n in ("data", "value")),
    ]


REPORTS = {
    "spectrum": "measure the eigenvalues that bound the rates of inference on one batch",
    "regime": "tell how far inference goes: gradients against backprop and equilibrium",
    "certify-locality": "prove on the program how far news travels in a step; exit code 3 where it is not local",
    "convergence": "measure how far inference is from its end after 1, 2, 4 … steps, against what is predicted",
    "asynchronous": "run vertex by vertex in random order, with delays, lost messages and own rates: what that costs",
    "cost": "count products, sequential depth, messages and memory of a step against backprop's",
}
"""Each option with its help."""
PICTURES = (".png", ".svg", ".pdf")


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
        (options.plot and not name, "--plot goes with a report such as --spectrum"),
        (options.plot and not options.plot.endswith(PICTURES), f"--plot writes a file {', '.join(PICTURES)}"),
    ]


def ready(options: argparse.Namespace) -> bool:
    """Whether a command line names a circuit rather than a model."""
    return bool(options.model.endswith(SUFFIX))


def circuit(options: argparse.Namespace) -> bool:
    """Whether a command line is about a circuit."""
    return options.backend == "netlist" or ready(options)


def circuit_options(p: argparse.ArgumentParser) -> None:
    """The options of circuits."""
    group = p.add_argument_group("circuits (--backend netlist, or a .pcnet.json)")
    group.add_argument("--eta", type=positive, help="step of gradient descent in a learning tick (default: 2⁻⁴)")
    group.add_argument("--ticks", type=whole, help="ticks until the error units have settled (default: 64)")
    group.add_argument("--apply", action="append", default=[], metavar="PASS",
                       help="flatten, untie, on-off or split-fan-in=NUMBER, in the order given")  # fmt: skip
    group.add_argument("--bits", type=bits, metavar="W:S", help="fixed point: bits of weights and of states")
    group.add_argument("--rounding", choices=("nearest", "stochastic"), default="nearest",
                       help="of changes of fixed-point weights")  # fmt: skip
    group.add_argument("--learn", action="store_true", help="with --simulate: a learning phase after settling")
    group.add_argument("--chip", help="a chip that comes with pccompile, such as loihi1, or a YAML file")
    group.add_argument("--report", metavar="FILE", help="resources and placement as an HTML page")
    group.add_argument("--spiking", action="store_true", help="with --export nengo: spiking ensembles")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--simulate", action="store_true", help="settle, and print outputs and errors")
    what.add_argument("--export", metavar="FORMAT", help="nengo, nir, sana-fe or verilog, into the folder -o")


def circuit_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with options where there is a circuit."""
    others = ("steps", "tolerance", "lowering", "lowering_tolerance", "granularity", "emit", "doctor")
    return [
        *((getattr(options, n, None), f"--{n.replace('_', '-')} does not go with circuits") for n in others),
        (options.explain is not None, "--explain does not go with circuits"),
        (options.rate == "auto", "--rate auto does not go with circuits: give a number"),
        (options.algorithm not in ("exact", "fixed-prediction"), "a circuit does fixed prediction"),
        (options.feedback != FEEDBACK[0], "--feedback does not go with circuits"),
        (options.capture != "export", "--capture does not go with circuits: a circuit has no paths"),
        (options.derivatives != DERIVATIVES[0], "--derivatives does not go with circuits"),
        (options.output == "-", "-o - prints code; a circuit is written to a folder"),
        (ready(options) and options.verify, "--verify compares with a model: name that instead of its circuit"),
        (
            ready(options) and (options.shape or options.rate or options.eta),
            "--shape, --rate and --eta shape a circuit that is built",
        ),
        (options.report and not options.chip, "--report shows a placement: give --chip"),
        (options.learn and not options.simulate, "--learn goes with --simulate"),
        (options.spiking and options.export != "nengo", "--spiking goes with --export nengo"),
        (options.simulate and (options.output or options.report), "--simulate prints: leave -o and --report out"),
        (options.verify and (options.simulate or options.export), "--verify stands alone, or with -o"),
    ]


def torch_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with options of circuits where there is none."""
    names = ("eta", "ticks", "apply", "bits", "learn", "chip", "report", "spiking", "simulate", "export")
    return [(getattr(options, n), f"--{n} goes with --backend netlist or a .pcnet.json") for n in names]
