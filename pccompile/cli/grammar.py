"""The grammar of the command line: its options in groups, and the settings of the algorithm that it names."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from pccompile import __version__
from pccompile.cli.energy_options import energy_options
from pccompile.cli.known_names import SETTINGS, SOME_STAGES, STAGES
from pccompile.cli.numbers import rate, whole
from pccompile.cli.options import circuit_options, input_options, report_options
from pccompile.cli.permissions import permission_options
from pccompile.cli.targets import kind_of
from pccompile.diagnostics import UsageError, printable
from pccompile.passes.choices import DERIVATIVES, FEEDBACK, GRANULARITIES

LOSSES = ("squared-error", "cross-entropy", "none")
CAPTURES = ("export", "path")
STAGES_PRINTED = ("graph", "pc", "program", "code")
DRAWN = ("latex", "dot", "mermaid")
EMITS = (*STAGES_PRINTED, *DRAWN)

USAGE = """\
pccompile MODEL [-o FOLDER] [options]            compile it, and check, show or measure what came of it
       pccompile explain MODEL [PATTERN] [options]      its vertices: equations, local rules, code, source line
       pccompile diff MODEL [MODEL] [options]           two models, two algorithms (--beside) or two circuits
       pccompile watch LOG [LOG ...] [options]          what a recorder of training has written
"""
EPILOG = """\
compile
  pccompile mynet.py:Net --shape x=16,4 -o out/            out/Net_pc.py and out/Net_pc.safetensors, standalone
  pccompile package.module:factory --shape x=8,3,32,32 --algorithm fixed-prediction --tolerance 1e-3 -o out/
  pccompile model.onnx --backend torch -o out/

see
  pccompile mynet.py:Net --shape x=16,4 --explore net.html the model and what inference does with a batch: a page
  pccompile explain model.onnx fc1                         equations, local rules, generated code, the source line
  pccompile explain model.onnx 'encoder.*.attention'       of all vertices of that name; /.../ is a regular expression
  pccompile diff mynet.py:Net --shape x=16,4 --beside strict
  pccompile diff old.onnx new.onnx --json

check
  pccompile model.onnx --verify                            forward pass against onnxruntime, gradients against autograd
  pccompile vad.onnx --constant sr=16000 --data inputs.npz --verify
  pccompile model.onnx --doctor                            everything that is unsupported, at once

measure inference
  pccompile mynet.py:Net --shape x=16,4 --algorithm strict --regime --plot regime.png
  pccompile mynet.py:Net --shape x=16,4 --algorithm strict --spectrum --json

build a circuit
  pccompile mynet.py:Net --shape x=1,4 --backend netlist -o out/       out/Net.pcnet.json, and what it costs
  pccompile out/Net.pcnet.json --simulate --ticks 64 --bits 8:16
  pccompile out/Net.pcnet.json --export verilog -o out/                nengo, nir, sana-fe or verilog

follow a training
  pccompile watch log.jsonl

settings of an algorithm: pccompile --algorithm strict --help
completion by a shell:    pccompile --print-completion bash, zsh or fish
exit codes: 0 done, 1 the model cannot be compiled, 2 wrong usage, 3 verification failed and nothing written, 70 our bug
"""


class Grammar(argparse.ArgumentParser):
    """A parser whose mistakes are lines like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message)


def parser(command: str = "") -> Grammar:
    """The command line's grammar, without a command or that of "explain" or "diff"."""
    p = Grammar(
        prog=f"pccompile {command}".rstrip(),
        usage=None if command else USAGE,
        description="Compiles a differentiable model into predictive-coding form: local rules as readable torch code.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "model",
        help="a file .onnx or .pt2, package.module:factory or file.py:factory, where the factory is an nn.Module, its "
        "class or a function that returns one, or a .pcnet.json",
    )
    if command == "explain":
        p.add_argument(
            "explain",
            nargs="?",
            default="",
            metavar="PATTERN",
            help="a vertex or a module, with * for any text, or a /regular expression/ (default: all)",
        )
    if command == "diff":
        p.add_argument("other", nargs="?", metavar="model", help="the other model; by default the same one")
    p.add_argument("--version", action="version", version=f"pccompile {__version__}")
    p.add_argument("--print-completion", metavar="SHELL", help="alone: what bash, zsh or fish completes by")
    written_options(p)
    compiling_options(p)
    input_options(p)
    energy_options(p)
    shown_options(p, command)
    circuit_options(p)
    permission_options(p)
    debugging_options(p)
    return p


def written_options(p: argparse.ArgumentParser) -> None:
    """What is made, and where."""
    group = p.add_argument_group("what is made")
    group.add_argument(
        "-o", "--output", metavar="FOLDER", help="write the generated file and its tensors there; - is stdout"
    )
    group.add_argument("--name", help="what the generated files are called; by default as the model")
    group.add_argument(
        "--backend", choices=("torch", "netlist"), default="torch", help="a torch file, or a circuit that learns"
    )
    group.add_argument("--seed", type=whole, default=0, help="for example inputs, targets and dropout (default: 0)")


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


def shown_options(p: argparse.ArgumentParser, command: str) -> None:
    """What is asked of the model besides or instead of files."""
    group = p.add_argument_group("check it")
    group.add_argument(
        "--verify", action="store_true", help="compare outputs and gradients; nothing is written where they differ"
    )
    group.add_argument("--doctor", action="store_true", help="list everything that is unsupported")
    group.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare with eager torch after compiling"
    )
    group = p.add_argument_group("see it")
    group.add_argument(
        "--explore", metavar="FILE", help="write a page about the model and one batch, .html, or its data, .json"
    )
    group.add_argument(
        "--beside",
        action="append",
        metavar="ALGORITHM",
        help="with --explore: another algorithm on the same batch (default: exact and fixed-prediction); with diff: "
        "the second model's",
    )
    if command != "explain":
        group.add_argument("--explain", nargs="?", const="", metavar="PATTERN", help="as pccompile explain")
    group.add_argument("--emit", choices=EMITS, help="print a stage's result, the code, the equations, or the graph")
    group = p.add_argument_group("measure inference on one batch")
    report_options(group)
    group.add_argument(
        "--json", action="store_true", help="a report such as --verify as JSON: docs/reference/reports.md"
    )
    group.add_argument(
        "--plot", metavar="FILE", help="with a report such as --spectrum: draw it too, .png, .svg or .pdf"
    )


def debugging_options(p: argparse.ArgumentParser) -> None:
    """How the compiler works, and how much it talks."""
    group = p.add_argument_group("watch the compiler")
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


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, the settings of algorithms as text. Raises UsageError, and SystemExit behind help.

    `options.command` is "", "explain" or "diff". Nothing heavy is imported but for help about an algorithm.
    """
    command = argv[0] if argv and argv[0] in ("explain", "diff") else ""
    arguments, reader = argv[len(command) > 0 :], parser(command)
    algorithms = asked_algorithms(command, arguments)
    known = {name: setting_names(name) for name in algorithms}
    if {"-h", "--help"} & {*arguments}:
        for name in algorithms:
            setting_options(reader, name)
    else:
        for setting in dict.fromkeys(s for names in known.values() for s in names if s != "rate"):
            reader.add_argument(f"--{setting.replace('_', '-')}")
    options, rest = reader.parse_known_intermixed_args(arguments)
    for target in filter(None, (options.model, getattr(options, "other", None))):
        kind_of(target)
    refuse(rest, reader, algorithms or ["exact"])
    options.command, options.arguments = command, arguments
    return options


def with_settings(options: argparse.Namespace) -> argparse.Namespace:
    """The options with the settings of algorithms as numbers. Raises UsageError."""
    algorithms = [n for n in asked_algorithms(options.command, options.arguments) if setting_names(n)]
    if not algorithms:
        return options
    reader = parser(options.command)
    for name in algorithms:
        setting_options(reader, name)
    kept = argparse.Namespace(command=options.command, arguments=options.arguments)
    return reader.parse_intermixed_args(options.arguments, kept)


def setting_names(algorithm: str) -> tuple[str, ...]:
    """The settings of an algorithm that comes along, or was registered. Raises UsageError for another."""
    loaded = sys.modules.get("pccompile.algorithms")
    registered = loaded.ALGORITHMS if loaded else {}
    if algorithm in registered and algorithm not in SETTINGS:
        return tuple(f.name for f in fields(registered[algorithm].settings))
    if algorithm not in SETTINGS:
        raise UsageError(f"--algorithm {printable(algorithm, 40)}: one of {', '.join(registered or SETTINGS)}")
    return SETTINGS[algorithm]


def setting_options(p: argparse.ArgumentParser, algorithm: str) -> None:
    """The settings of an algorithm, one option each."""
    from pccompile.algorithms import ALGORITHMS, options_of

    group = p.add_argument_group(f"settings of {algorithm} ({ALGORITHMS[algorithm].citation})")
    for name, how in options_of(ALGORITHMS[algorithm]).items():
        option = f"--{name.replace('_', '-')}"
        if option not in p._option_string_actions:  # circuits have a rate too, and so may another algorithm
            group.add_argument(option, **how)


def refuse(rest: Sequence[str], reader: argparse.ArgumentParser, algorithms: Sequence[str]) -> None:
    """Raise UsageError for what the parser does not know: a setting of another algorithm, or nothing at all."""
    if not rest:
        return
    name = rest[0].partition("=")[0]
    if name in {f"--{s.replace('_', '-')}" for names in SETTINGS.values() for s in names}:
        raise UsageError(f"{algorithms[0]} has no setting {name}")
    near = difflib.get_close_matches(name, reader._option_string_actions, 1) if name.startswith("--") else []
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"unrecognized arguments: {printable(' '.join(rest), 100)}{meant}")


def asked_algorithms(command: str, argv: Sequence[str]) -> list[str]:
    """The algorithms that a command line names: which other options there are depends on them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--algorithm")
    if command == "diff":
        first.add_argument("--beside")
    try:
        found = first.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # the parser of all options says what is wrong
        return []
    return [name for name in vars(found).values() if name is not None]
