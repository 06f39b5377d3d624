"""The options of circuits: what they are, and what does not go with them."""

from __future__ import annotations

import argparse
from typing import Any

from pccompile.cli.numbers import bits, positive, whole
from pccompile.passes.choices import DERIVATIVES, FEEDBACK

SUFFIX = ".pcnet.json"


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
