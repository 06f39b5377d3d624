"""The command line: `pccompile model.onnx -o out/`, and what else can be asked of a model.

Results go to stdout, talk to stderr. Nothing heavy is imported before the arguments have been read.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from pccompile import __version__
from pccompile.diagnostics import EXIT_BUG, EXIT_MODEL, EXIT_USAGE, CompileError, UsageError, printable

EXIT_INTERRUPTED, EXIT_PIPE = 130, 141
LOSSES = ("squared-error", "cross-entropy", "none")
STAGES = ("import", "canonicalise", "dce", "settle-layouts", "insert-vertices", "derive-rules", "schedule", "emit")
EMITS = ("graph", "pc", "program", "code")

EPILOG = """\
exit codes: 0 done, 1 the model cannot be compiled, 2 wrong usage, 3 verification failed and nothing written, 70 our bug

  pccompile model.onnx -o out/                 out/model_pc.py and out/model_pc.safetensors, standalone
  pccompile model.onnx --verify                forward pass against onnxruntime, gradients against autograd
  pccompile package.module:factory --shape x=8,3,32,32 --algorithm fixed-prediction --tolerance 1e-3 -o out/
  pccompile model.onnx --explain fc1           equations, local rules, generated code and the source line
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
        "model", help="a file .onnx or .pt2, or package.module:factory, a function that returns an nn.Module"
    )
    p.add_argument(
        "-o", "--output", metavar="FOLDER", help="write the generated file and its tensors there; - is stdout"
    )
    p.add_argument("--name", help="what the generated files are called; by default as the model")
    p.add_argument("--backend", choices=("torch",), default="torch")
    p.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=SIZES",
        help="an example input: x=8,3,32,32 or ids=4,16:int64",
    )
    p.add_argument("--seed", type=whole, default=0, help="for example inputs, targets and dropout (default: 0)")
    group = p.add_argument_group("how it is compiled")
    group.add_argument("--algorithm", default="exact", help="exact (default), fixed-prediction or strict")
    group.add_argument(
        "--granularity", choices=("op", "layer"), help="what a vertex is; by default what suits the algorithm"
    )
    group.add_argument(
        "--loss", choices=LOSSES, default=LOSSES[0], help="the loss in the generated file (default: %(default)s)"
    )
    amount = group.add_mutually_exclusive_group()
    amount.add_argument("--steps", type=whole, help="inference steps")
    amount.add_argument("--tolerance", type=positive, help="as many steps as this relative gradient error needs")
    group.add_argument("--rate", type=positive, help="size of an inference step")
    group.add_argument(
        "--lowering", choices=("closed-form", "relax"), help="fixed-prediction: evaluate the steps, or take them"
    )
    group = p.add_argument_group("what is shown")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--verify", action="store_true", help="compare outputs and gradients; nothing is written where they differ"
    )
    what.add_argument("--explain", nargs="?", const="", metavar="VERTEX", help="all vertices, or one in full")
    what.add_argument("--emit", choices=EMITS, help="print a stage's result or the generated code")
    what.add_argument("--doctor", action="store_true", help="list everything that is unsupported")
    group.add_argument("--json", action="store_true", help="with --verify: the report as JSON")
    group.add_argument(
        "--print-after", action="append", default=[], metavar="PASS", help=f"print to stderr: {', '.join(STAGES)}"
    )
    group.add_argument("--dump-dir", metavar="DIR", help="write each stage's result to a file there")
    group.add_argument("--time-passes", action="store_true", help="print what each stage took")
    group.add_argument("--quiet", action="store_true", help="no talk, only results and errors")
    group.add_argument("--debug", action="store_true", help="show the traceback of an internal error")
    p.add_argument("--version", action="version", version=f"pccompile {__version__}")
    return p


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    value = int(text)
    if value < 0 or value >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; what it returns is the exit code."""
    p = parser()
    try:
        options = p.parse_args(argv)
    except SystemExit as e:
        return int(e.code or 0)
    try:
        code = guarded(p, options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def guarded(p: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run, and turn whatever goes wrong into lines and an exit code."""
    shown = printable(os.path.basename(options.model) or options.model, 100)
    try:
        check(options)
        from pccompile.command import run

        return run(options, shown)
    except CompileError as e:
        return report(e, shown)
    except KeyboardInterrupt:
        talk("pccompile: interrupted, nothing written")
        return EXIT_INTERRUPTED
    except UsageError as e:
        talk(f"pccompile: error: {e}\n  hint: pccompile --help")
        return EXIT_USAGE
    except BrokenPipeError:
        raise
    except Exception as e:
        if options.debug:
            traceback.print_exc()
        line = printable(f"{type(e).__name__}: {e}", 200)
        talk(f"pccompile: internal error: {line} (--debug shows the traceback; please report it)")
        return EXIT_BUG


def report(error: CompileError, shown: str) -> int:
    """Print everything that is wrong with a model."""
    for problem in error.problems:
        talk(f"{shown}: {problem}")
    n = len(error.problems)
    talk(f"{shown}: {n} error{'s' if n > 1 else ''}, nothing written")
    return EXIT_MODEL


def talk(text: str) -> None:
    """A line to stderr; there may be nobody who reads it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def check(options: argparse.Namespace) -> None:
    """Reject what cannot be meant. Raises CompileError or UsageError."""
    wrong: list[tuple[Any, str]] = [
        (options.json and not options.verify, "--json goes with --verify"),
        (options.output == "-" and not (options.emit or plain(options)), "-o - prints what --emit names"),
        (
            options.emit and options.output not in (None, "-"),
            "--emit prints: give -o -, or leave --emit out to write files",
        ),
        (options.doctor and options.output, "--doctor writes nothing: leave -o out"),
        (options.explain is not None and options.output, "--explain writes nothing: leave -o out"),
        (
            options.loss == "none" and options.algorithm == "strict",
            "strict inference needs a loss: --loss squared-error or cross-entropy",
        ),
        (options.name is not None and not options.name.strip(), "--name is empty"),
        *(
            (p not in STAGES, f"--print-after {printable(p, 40)}: no such pass; the passes are {', '.join(STAGES)}")
            for p in options.print_after
        ),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise UsageError(what)


def plain(options: argparse.Namespace) -> bool:
    """Whether nothing but compiling is asked for."""
    return not (options.verify or options.emit or options.doctor or options.explain is not None)


if __name__ == "__main__":
    sys.exit(main())
