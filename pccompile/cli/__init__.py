"""The command line: `pccompile model.onnx -o out/`, and what else can be asked of a model.

Results go to stdout, talk to stderr. Nothing heavy is imported before the arguments have been read.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from pccompile import __version__
from pccompile.cli import streams
from pccompile.cli.energy_options import energy_checks, energy_options
from pccompile.cli.input_options import input_checks, input_options
from pccompile.cli.permissions import granted, permission_options
from pccompile.cli.report_options import report_asked, report_checks, report_options
from pccompile.cli.streams import talk
from pccompile.diagnostics import EXIT_BUG, EXIT_MODEL, EXIT_USAGE, CompileError, UsageError, printable

EXIT_INTERRUPTED, EXIT_PIPE = 130, 141
LOSSES = ("squared-error", "cross-entropy", "none")
FEEDBACK, DERIVATIVES = ("transpose", "random", "sign", "kolen-pollack", "dkp"), ("exact", "dropped")
STAGES = (
    "import", "canonicalise", "dce", "settle-layouts", "settle-presence", "insert-vertices", "derive-rules", "schedule",
    "emit",
)  # fmt: skip
SOME_STAGES = ("stop-unsent", "energies", "mirror", "feedback", "roles")  # where there is something to do
CIRCUIT_STAGES = ("import", "canonicalise", "every-place", "simplify", "netlist")
EMITS = ("graph", "pc", "program", "code")

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
    group = p.add_argument_group("how it is compiled")
    group.add_argument("--algorithm", default="exact", help="exact (default) or another; with --help, its settings")
    group.add_argument(
        "--granularity", choices=("op", "layer", "output"), help="what a vertex is; by default what suits the algorithm"
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
    group.add_argument("--rate", type=rate, help="size of an inference step, or auto: what a measurement allows")
    input_options(p)
    energy_options(p)
    group.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare with eager torch after compiling"
    )
    circuit_options(p)
    permission_options(p)
    group = p.add_argument_group("what is shown")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--verify", action="store_true", help="compare outputs and gradients; nothing is written where they differ"
    )
    what.add_argument("--explain", nargs="?", const="", metavar="VERTEX", help="all vertices, or one in full")
    what.add_argument("--emit", choices=EMITS, help="print a stage's result or the generated code")
    report_options(what)
    what.add_argument("--doctor", action="store_true", help="list everything that is unsupported")
    group.add_argument("--json", action="store_true", help="with a report such as --verify: as JSON")
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
    p.add_argument("--version", action="version", version=f"pccompile {__version__}")
    return p


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


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{printable(text, 40)} is not a number")
    return value


def rate(text: str) -> float | str:
    """A finite number, or the word that lets it be chosen."""
    return text if text == "auto" else number(text)


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


def bits(text: str) -> tuple[int, int]:
    """Bits of weights and of states, `8:16`."""
    weights, _, states = text.partition(":")
    found = int(weights), int(states)
    if not all(2 <= b <= 32 for b in found):
        raise argparse.ArgumentTypeError(f"{text} is not two numbers from 2 to 32")
    return found


def circuit(options: argparse.Namespace) -> bool:
    """Whether a command line is about a circuit."""
    return bool(options.backend == "netlist" or options.model.endswith(".pcnet.json"))


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
    streams.prepare()
    try:
        code = parsed_and_run(argv)
        streams.flush()
        return code
    except BrokenPipeError:
        streams.abandon()
        return EXIT_PIPE
    except OSError as e:
        streams.abandon()
        talk(f"pccompile: error: cannot print the result: {e.strerror or e}")
        return EXIT_MODEL


def parsed_and_run(argv: Sequence[str] | None) -> int:
    """Read the command line, and run it."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["watch"]:
        return watched(given[1:])
    try:
        reader, algorithm = parser(), asked_algorithm(argv)
        if algorithm is not None:
            setting_options(reader, algorithm)
        options, rest = reader.parse_known_args(argv)
        refuse(rest, options.algorithm)
    except SystemExit as e:
        return int(e.code or 0)
    except UsageError as e:
        return misused(e)
    return guarded(options)


def watched(argv: Sequence[str]) -> int:
    """Show the log of a training."""
    from pccompile.cli.watch_command import watch

    try:
        return watch(argv)
    except SystemExit as e:
        return int(e.code or 0)
    except CompileError as e:
        return report(e, "watch")


def guarded(options: argparse.Namespace) -> int:
    """Run, and turn whatever goes wrong into lines and an exit code."""
    shown = printable(os.path.basename(options.model) or options.model, 100)
    try:
        check(options)
        with granted(options):
            from pccompile.cli.torch_command import run

            return run(options, shown)
    except CompileError as e:
        return report(e, shown)
    except KeyboardInterrupt:
        talk("pccompile: interrupted, nothing written")
        return EXIT_INTERRUPTED
    except UsageError as e:
        return misused(e)
    except MemoryError:
        talk(f"{shown}: error: there is not enough memory\n{shown}: 1 error, nothing written")
        return EXIT_MODEL
    except OSError as e:
        if e.filename is None:  # of a stream, not of a file
            raise
        return bug(e, options)
    except Exception as e:
        return bug(e, options)


def misused(e: UsageError) -> int:
    """Say what is wrong with the command line."""
    talk(f"pccompile: error: {e}\n  hint: pccompile --help")
    return EXIT_USAGE


def bug(e: Exception, options: argparse.Namespace) -> int:
    """Say that something went wrong that should not."""
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


def check(options: argparse.Namespace) -> None:
    """Reject what cannot be meant. Raises CompileError or UsageError."""
    stages = CIRCUIT_STAGES if circuit(options) else (*STAGES, *SOME_STAGES)
    wrong: list[tuple[Any, str]] = [
        *(circuit_checks(options) if circuit(options) else torch_checks(options)),
        *input_checks(options),
        *report_checks(options, circuit(options)),
        *energy_checks(options, circuit(options)),
        (
            options.json and not (options.verify or options.simulate or report_asked(options)),
            "--json goes with --verify, --simulate or a report such as --spectrum",
        ),
        (options.output == "-" and not (options.emit or plain(options)), "-o - prints what --emit names"),
        (
            options.emit and options.output not in (None, "-"),
            "--emit prints: give -o -, or leave --emit out to write files",
        ),
        (options.doctor and options.output, "--doctor writes nothing: leave -o out"),
        (options.explain is not None and options.output, "--explain writes nothing: leave -o out"),
        (
            options.loss == "none" and needs_loss(options.algorithm),
            f"{options.algorithm} inference needs a loss: --loss squared-error or cross-entropy",
        ),
        (options.name is not None and not options.name.strip(), "--name is empty"),
        *(
            (p not in stages, f"--print-after {printable(p, 40)}: no such pass; the passes are {', '.join(stages)}")
            for p in options.print_after
        ),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise UsageError(what)


def needs_loss(algorithm: str) -> bool:
    """Whether inference evaluates the loss; of "exact", the default, that is known without torch."""
    if algorithm == "exact":
        return False
    from pccompile.algorithms import ALGORITHMS

    return ALGORITHMS[algorithm].needs_loss


def torch_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with options of circuits where there is none."""
    names = ("eta", "ticks", "apply", "bits", "learn", "chip", "report", "spiking", "simulate", "export")
    return [(getattr(options, n), f"--{n} goes with --backend netlist or a .pcnet.json") for n in names]


def circuit_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with options where there is a circuit."""
    ready = options.model.endswith(".pcnet.json")
    others = ("steps", "tolerance", "lowering", "lowering_tolerance", "granularity", "emit", "doctor")
    return [
        *((getattr(options, n, None), f"--{n.replace('_', '-')} does not go with circuits") for n in others),
        (options.explain is not None, "--explain does not go with circuits"),
        (options.rate == "auto", "--rate auto does not go with circuits: give a number"),
        (options.algorithm not in ("exact", "fixed-prediction"), "a circuit does fixed prediction"),
        (options.feedback != FEEDBACK[0], "--feedback does not go with circuits"),
        (options.derivatives != DERIVATIVES[0], "--derivatives does not go with circuits"),
        (options.output == "-", "-o - prints code; a circuit is written to a folder"),
        (ready and options.verify, "--verify compares with a model: name that instead of its circuit"),
        (
            ready and (options.shape or options.rate or options.eta),
            "--shape, --rate and --eta shape a circuit that is built",
        ),
        (options.report and not options.chip, "--report shows a placement: give --chip"),
        (options.learn and not options.simulate, "--learn goes with --simulate"),
        (options.spiking and options.export != "nengo", "--spiking goes with --export nengo"),
        (options.simulate and (options.output or options.report), "--simulate prints: leave -o and --report out"),
        (options.verify and (options.simulate or options.export), "--verify stands alone, or with -o"),
    ]


def plain(options: argparse.Namespace) -> bool:
    """Whether nothing but compiling is asked for."""
    return not (
        options.verify or options.emit or options.doctor or report_asked(options) or options.explain is not None
    )
