"""The command line: `pccompile model.onnx -o out/`, and what else can be asked of a model.

Results go to stdout, talk to stderr. Nothing heavy is imported before the arguments have been read.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from pccompile.cli import streams
from pccompile.cli.checks import check
from pccompile.cli.grammar import read, with_settings
from pccompile.cli.options import circuit
from pccompile.cli.permissions import granted
from pccompile.cli.streams import talk
from pccompile.diagnostics import EXIT_BUG, EXIT_MODEL, EXIT_USAGE, CompileError, UsageError, printable

EXIT_INTERRUPTED, EXIT_PIPE = 130, 141


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
    try:
        if given[:1] == ["watch"]:
            from pccompile.cli.watch_command import watch

            return watch(given[1:])
        if "--print-completion" in given:
            from pccompile.cli.completion import print_completion

            return print_completion(given)
        options = read(given)
    except SystemExit as e:
        return int(e.code or 0)
    except UsageError as e:
        return misused(e)
    except CompileError as e:
        return report(e, "pccompile" if given[:1] != ["watch"] else "watch")
    return guarded(options)


def guarded(options: argparse.Namespace) -> int:
    """Run, and turn whatever goes wrong into lines and an exit code."""
    shown = printable(os.path.basename(options.model) or options.model, 100)
    try:
        with granted(options):
            check(options)
            run = command_of(options)
            options = with_settings(options)
            with nullcontext() if options.debug else streams.hushed():
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


def command_of(options: argparse.Namespace) -> Callable[[argparse.Namespace, str], int]:
    """What runs the options. Imports torch."""
    if options.command == "diff":
        from pccompile.cli.diff_command import run
    elif circuit(options):
        from pccompile.cli.netlist_command import run
    else:
        from pccompile.cli.torch_command import run
    return run


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
