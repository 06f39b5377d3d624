"""What cannot be meant, or is not there: said before anything heavy is loaded."""

from __future__ import annotations

import argparse
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from pccompile.cli.data_files import check_kind
from pccompile.cli.energy_options import energy_checks
from pccompile.cli.grammar import setting_names
from pccompile.cli.known_names import CIRCUIT_STAGES, EXPORTERS, SETTINGS, SOME_STAGES, STAGES, TRANSFORMS, WITHOUT_LOSS
from pccompile.cli.options import (
    REPORTS,
    circuit,
    circuit_checks,
    input_checks,
    report_asked,
    report_checks,
    torch_checks,
)
from pccompile.cli.shapes import parse_shape
from pccompile.cli.targets import SUFFIX, look_for
from pccompile.cli.user_inputs import read_numbers
from pccompile.diagnostics import CompileError, UsageError, printable
from pccompile.files.reading import open_file
from pccompile.files.writing import check_folder, check_replaceable


def check(options: argparse.Namespace) -> None:
    """Reject what cannot be meant, then what is not there. Raises CompileError or UsageError."""
    if options.command == "diff":
        for one in pair(options):
            check(one)
        return
    check_options(options)
    for text in options.shape:
        parse_shape(text)
    for name in ("value", "constant"):
        read_numbers(f"--{name}", getattr(options, name))
    if circuit(options):
        check_circuit(options)
    look_for(options.model, options.trust_code)
    if options.data is not None:
        check_kind(Path(options.data))
        open_file(Path(options.data)).close()
    if options.output not in (None, "-"):
        check_folder(Path(options.output))
    if options.explore:
        check_folder(Path(options.explore).parent)
        check_replaceable([Path(options.explore)])


NOT_IN_DIFF = (
    "output", "name", "plot", "simulate", "export", "apply", "bits", "learn", "chip", "report", "spiking",
)  # fmt: skip


def pair(options: argparse.Namespace) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The options of the two models that are compared, each with the settings that its algorithm has.

    Raises UsageError for what does not go with that.
    """
    others = [*asked(options), *(f"--{n}" for n in NOT_IN_DIFF if getattr(options, n))]
    if others:
        raise UsageError(f"{others[0]} does not go with diff")
    if len(options.beside or ()) > 1:
        raise UsageError("diff compares two: give --beside once")
    models = options.model, options.other or options.model
    circuits = [m.endswith(SUFFIX) for m in models]
    algorithms = options.algorithm, *(options.beside or [options.algorithm])
    given = {s for n in algorithms for s in setting_names(n) if getattr(options, s, None) is not None}
    changed = {**vars(options), "beside": None, "json": False, "command": ""}
    changed["backend"] = "netlist" if any(circuits) else options.backend
    both = []
    for model, algorithm, ready in zip(models, algorithms, circuits, strict=True):
        own = {**changed, **dict.fromkeys(given - {*setting_names(algorithm)}), "model": model, "algorithm": algorithm}
        if ready and not all(circuits):  # sizes are those of the circuit that is built beside it
            own["shape"] = []
        both.append(argparse.Namespace(**own))
    return both[0], both[1]


def check_circuit(options: argparse.Namespace) -> None:
    """Reject names that no transform, format or chip has."""
    for text in options.apply:
        name, _, value = text.partition("=")
        split = name == "split-fan-in" and value.isdigit() and int(value) > 1
        if not split and (name not in TRANSFORMS or value):
            raise UsageError(f"--apply {printable(text, 40)}: one of {', '.join(TRANSFORMS)}, split-fan-in=NUMBER")
    if options.export and options.export not in EXPORTERS:
        formats = sorted({*EXPORTERS, *(e.name for e in metadata.entry_points(group="pccompile.backends"))})
        if options.export not in formats:
            raise UsageError(f"--export {printable(options.export, 40)}: one of {', '.join(formats)}")
    if options.chip and Path(options.chip).suffix in (".yaml", ".yml"):
        open_file(Path(options.chip)).close()
    elif options.chip:
        folder = resources.files("pccompile") / "backends" / "netlist" / "chips"
        chips = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
        if options.chip not in chips:
            what = f"no chip is called {printable(options.chip, 80)}"
            raise CompileError(what, hint=f"known are {', '.join(chips)}, or give a .yaml file")


def check_options(options: argparse.Namespace) -> None:
    """Reject options that do not go together. Raises UsageError."""
    stages = CIRCUIT_STAGES if circuit(options) else (*STAGES, *SOME_STAGES)
    wrong: list[tuple[Any, str]] = [
        *(circuit_checks(options) if circuit(options) else torch_checks(options)),
        *input_checks(options),
        *report_checks(options, circuit(options)),
        *energy_checks(options, circuit(options)),
        (
            options.json and not json_asked(options),
            "--json goes with --verify, --simulate or a report such as --spectrum",
        ),
        (options.output == "-" and not (options.emit or plain(options)), "-o - prints what --emit names"),
        (
            options.emit and options.output not in (None, "-"),
            "--emit prints: give -o -, or leave --emit out to write files",
        ),
        (len(asked(options)) > 1, f"{' and '.join(asked(options))} do not go together: ask for one at a time"),
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


def asked(options: argparse.Namespace) -> list[str]:
    """The options that ask for something else than files; only one can be answered."""
    names = ("verify", "doctor", "explore", "explain", "emit", *REPORTS)
    return [f"--{n}" for n in names if getattr(options, n.replace("-", "_")) not in (None, False)]


def json_asked(options: argparse.Namespace) -> bool:
    """Whether what a command line asks for can be printed as JSON, with nothing else on stdout."""
    if options.verify or options.simulate or options.doctor or report_asked(options):
        return True
    written = options.output or options.report or options.export or options.explore or options.emit
    return circuit(options) and not written


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
    """Whether inference evaluates the loss."""
    if algorithm in SETTINGS:
        return algorithm not in WITHOUT_LOSS
    from pccompile.algorithms import ALGORITHMS

    return ALGORITHMS[algorithm].needs_loss


def plain(options: argparse.Namespace) -> bool:
    """Whether nothing but compiling is asked for."""
    asked = options.verify or options.emit or options.doctor or options.explore or report_asked(options)
    return not (asked or options.explain is not None)
