"""The grammar of the command line: its options in groups, and the settings of the algorithm that it names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pccompile import __version__
from pccompile.cli.energy_options import energy_options
from pccompile.cli.numbers import rate, whole
from pccompile.cli.options import circuit_options, input_options, report_options
from pccompile.cli.permissions import permission_options
from pccompile.cli.stages import SOME_STAGES, STAGES
from pccompile.diagnostics import UsageError, printable
from pccompile.passes.choices import DERIVATIVES, FEEDBACK, GRANULARITIES

LOSSES = ("squared-error", "cross-entropy", "none")
CAPTURES = ("export", "path")
STAGES_PRINTED = ("graph", "pc", "program", "code")
DRAWN = ("latex", "dot", "mermaid")
EMITS = (*STAGES_PRINTED, *DRAWN)

EPILOG = """\
exit codes: 0 done, 1 the model cannot be compiled, 2 wrong usage, 3 verification failed and nothing written, 70 our bug

  pccompile model.onnx -o out/                 out/model_pc.py and out/model_pc.safetensors, standalone
  pccompile model.onnx --verify                forward pass against onnxruntime, gradients against autograd
  pccompile package.module:factory --shape x=8,3,32,32 --algorithm fixed-prediction --tolerance 1e-3 -o out/
  pccompile model.onnx --backend netlist -o out/           a circuit, out/model.pcnet.json, and what it costs
  pccompile out/model.pcnet.json --simulate --ticks 64 --bits 8:16
  pccompile out/model.pcnet.json --export verilog -o out/   nengo, nir, sana-fe or verilog
  pccompile vad.onnx --constant sr=16000 --data inputs.npz --verify
  pccompile model.onnx --explain fc1           equations, local rules, generated code and the source line
  pccompile model.onnx --explore model.html    the model and what inference does with a batch, as one offline page
  pccompile watch log.jsonl                    what a recorder of training has written
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    p = argparse.ArgumentParser(
        prog="pccompile",
        description="Compiles a differentiable model into predictive-coding form: local rules as readable torch code.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "model",
        help="a file .onnx or .pt2, package.module:factory, a function that returns an nn.Module, or a .pcnet.json",
    )
    p.add_argument(
        "-o", "--output", metavar="FOLDER", help="write the generated file and its tensors there; - is stdout"
    )
    p.add_argument("--name", help="what the generated files are called; by default as the model")
    p.add_argument(
        "--backend", choices=("torch", "netlist"), default="torch", help="a torch file, or a circuit that learns"
    )
    p.add_argument("--seed", type=whole, default=0, help="for example inputs, targets and dropout (default: 0)")
    compiling_options(p)
    input_options(p)
    energy_options(p)
    circuit_options(p)
    permission_options(p)
    shown_options(p)
    p.add_argument("--version", action="version", version=f"pccompile {__version__}")
    return p


def compiling_options(p: argparse.ArgumentParser) -> None:
    """How a model is compiled; the settings of its algorithm are `setting_options`."""
    group = p.add_argument_group("how it is compiled")
    group.add_argument("--algorithm", default="exact", help="exact (default) or another; with --help, its settings")
    group.add_argument(
        "--granularity", choices=GRANULARITIES, help="what a vertex is; by default what suits the algorithm"
    )
    for name, choices, words in (
        ("--feedback", FEEDBACK, "which weights messages to values read"),
        ("--derivatives", DERIVATIVES, "dropped leaves out the slopes of activations in messages"),
    ):
        group.add_argument(name, choices=choices, default=choices[0], help=f"{words} (default: %(default)s)")
    group.add_argument(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="the loss in the generated file or circuit (default: %(default)s)",
    )
    group.add_argument(
        "--capture",
        choices=CAPTURES,
        default=CAPTURES[0],
        help="export: whole; path: along the path that Python takes on the example, where it decides by numbers "
        "(default: %(default)s)",
    )
    group.add_argument("--rate", type=rate, help="size of an inference step, or auto: what a measurement allows")
    group.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare with eager torch after compiling"
    )


def shown_options(p: argparse.ArgumentParser) -> None:
    """What is printed besides or instead of files."""
    group = p.add_argument_group("what is shown")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--verify", action="store_true", help="compare outputs and gradients; nothing is written where they differ"
    )
    what.add_argument("--explain", nargs="?", const="", metavar="VERTEX", help="all vertices, or one in full")
    what.add_argument("--emit", choices=EMITS, help="print a stage's result, the code, the equations, or the graph")
    what.add_argument(
        "--explore", metavar="FILE", help="write a page about the model and one batch, .html, or its data, .json"
    )
    report_options(what)
    what.add_argument("--doctor", action="store_true", help="list everything that is unsupported")
    group.add_argument(
        "--beside",
        action="append",
        metavar="ALGORITHM",
        help="with --explore: another algorithm on the same batch (default: exact and fixed-prediction)",
    )
    group.add_argument("--json", action="store_true", help="with a report such as --verify: as JSON")
    group.add_argument(
        "--plot", metavar="FILE", help="with a report such as --spectrum: draw it too, .png, .svg or .pdf"
    )
    group.add_argument(
        "--print-after",
        action="append",
        default=[],
        metavar="PASS",
        help=f"print to stderr: {', '.join((*STAGES, *SOME_STAGES))}",
    )
    group.add_argument("--dump-dir", metavar="DIR", help="write each stage's result to a file there")
    group.add_argument("--time-passes", action="store_true", help="print what each stage took")
    group.add_argument("--quiet", action="store_true", help="no talk, only results and errors")
    group.add_argument("--debug", action="store_true", help="show the traceback of an internal error")


def setting_options(p: argparse.ArgumentParser, algorithm: str) -> None:
    """The settings of an algorithm, one option each. Raises UsageError for one that does not exist."""
    from pccompile.algorithms import ALGORITHMS, options_of

    if algorithm not in ALGORITHMS:
        raise UsageError(f"--algorithm {printable(algorithm, 40)}: one of {', '.join(ALGORITHMS)}")
    group = p.add_argument_group(f"settings of {algorithm} ({ALGORITHMS[algorithm].citation})")
    for name, how in options_of(ALGORITHMS[algorithm]).items():
        if name != "rate":  # circuits have one too
            group.add_argument(f"--{name.replace('_', '-')}", **how)


def refuse(rest: Sequence[str], algorithm: str) -> None:
    """Raise UsageError for what the parser does not know: a setting of another algorithm, or nothing at all."""
    if not rest:
        return
    name = rest[0].partition("=")[0]
    from pccompile.algorithms import ALGORITHMS, options_of

    settings = {f"--{n.replace('_', '-')}" for a in ALGORITHMS.values() for n in options_of(a)}
    if name in settings:
        raise UsageError(f"{algorithm} has no setting {name}")
    raise UsageError(f"unrecognized arguments: {printable(' '.join(rest), 100)}")


def asked_algorithm(argv: Sequence[str] | None) -> str | None:
    """The algorithm that a command line names, if any: which other options there are depends on it."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--algorithm")
    try:
        found: str | None = first.parse_known_args(argv)[0].algorithm
    except argparse.ArgumentError:  # the parser of all options says what is wrong
        return None
    return found
