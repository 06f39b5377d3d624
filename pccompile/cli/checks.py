"""What cannot be meant: options that do not go together, said before anything heavy is loaded."""

from __future__ import annotations

import argparse
from typing import Any

from pccompile.cli.energy_options import energy_checks
from pccompile.cli.options import circuit, circuit_checks, input_checks, report_asked, report_checks, torch_checks
from pccompile.cli.stages import CIRCUIT_STAGES, SOME_STAGES, STAGES
from pccompile.diagnostics import UsageError, printable


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
        *explore_checks(options),
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


def explore_checks(options: argparse.Namespace) -> list[tuple[Any, str]]:
    """What is wrong with a command line that asks for a page."""
    page = options.explore
    return [
        (page is not None and options.output, "--explore names its own file: leave -o out"),
        (
            page is not None and (options.simulate or options.export),
            "--explore goes with neither --simulate nor --export",
        ),
        (page is not None and not page.endswith((".html", ".json")), "--explore writes a file .html or .json"),
        (
            page is not None and options.loss == "none" and not circuit(options),
            "--explore needs a loss: --loss squared-error or cross-entropy",
        ),
        (options.beside and (page is None or circuit(options)), "--beside goes with --explore of a model"),
    ]


def needs_loss(algorithm: str) -> bool:
    """Whether inference evaluates the loss; of "exact", the default, that is known without torch."""
    if algorithm == "exact":
        return False
    from pccompile.algorithms import ALGORITHMS

    return ALGORITHMS[algorithm].needs_loss


def plain(options: argparse.Namespace) -> bool:
    """Whether nothing but compiling is asked for."""
    asked = options.verify or options.emit or options.doctor or options.explore or report_asked(options)
    return not (asked or options.explain is not None)
