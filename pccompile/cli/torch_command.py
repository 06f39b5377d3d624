"""What the command line does, once its arguments make sense."""

from __future__ import annotations

import argparse
import ast
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pccompile
from pccompile.algorithms import ALGORITHMS
from pccompile.api.module import PCModule
from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.files import text as netlist_text
from pccompile.backends.torch import Source
from pccompile.cli.energy_options import energy_settings
from pccompile.cli.loading import Target, kind_of, load
from pccompile.cli.netlist_command import is_netlist, run_netlist
from pccompile.cli.report_options import report_asked
from pccompile.cli.user_inputs import user_inputs
from pccompile.diagnostics import (
    EXIT_DONE,
    EXIT_MODEL,
    EXIT_USAGE,
    EXIT_VERIFY,
    CompileError,
    UsageError,
    printable,
)
from pccompile.files.writing import SEAL, check_replaceable, write_together
from pccompile.frontends.imported import Imported
from pccompile.report.doctor import examine
from pccompile.report.gradients import Bench
from pccompile.report.losses import cross_entropy
from pccompile.report.settling import settling
from pccompile.report.summary import warnings as worth_knowing
from pccompile.report.tables import Table, as_json, show
from pccompile.runtime.automatic_rates import measures
from pccompile.runtime.saving import check_writable, save_generated

HIDDEN = ("import-graph", "check")
"""Stages whose result another stage has shown."""


def run(options: argparse.Namespace, shown: str) -> int:
    """Do what `options` ask for; what is returned is the exit code. Raises CompileError and UsageError."""
    if options.backend == "netlist" or is_netlist(options.model):
        with nullcontext() if options.debug else hushed():
            watch = Watch(options)
            code = run_netlist(options, shown, watch)
            watch.finish()
            return code
    settings = {**settings_of(options), **energy_settings(options)}
    inputs = user_inputs(options)
    kind = kind_of(options.model)
    name = options.name or default_name(options.model, kind)
    folder = Path(options.output) if options.output not in (None, "-") else None
    if folder:
        check_writable(folder, name)
    if options.verify and kind == "onnx":
        from pccompile.report.reference import require_onnxruntime

        require_onnxruntime()
    watch = Watch(options)

    def made() -> tuple[PCModule, Target]:
        with watch.progress(), redirect_stdout(sys.stderr):  # what a model prints is no result
            target = load(options.model, inputs, options.seed, options.trust_code)
            return compiled(target, options, settings, watch), target

    with nullcontext() if options.debug else hushed():
        return carried_out(options, shown, made, watch, folder, name)


@contextmanager
def hushed() -> Iterator[None]:
    """Libraries neither warn nor log inside."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def carried_out(
    options: argparse.Namespace,
    shown: str,
    made: Callable[[], tuple[PCModule, Target]],
    watch: Watch,
    folder: Path | None,
    name: str,
) -> int:
    """Compile, check, and only then write or print."""
    if options.doctor:
        page, fine = examine(shown, options.model, lambda: made()[0])
        show(page)
        return EXIT_DONE if fine else EXIT_MODEL
    pc, target = made()
    watch.talk(shown, pc)
    if options.verify and not verified(pc, target, options):
        print(f"{shown}: verification failed, nothing written", file=sys.stderr)
        return EXIT_VERIFY
    if pc.compiled.source.moving and options.check and not (options.verify or report_asked(options)):
        settled(pc, target, options, shown)
    if folder:
        for path in save_generated(source_of(pc, options.loss), pc.state(), folder, name):
            print(printable(str(path)))
    elif report_asked(options):
        return reported(pc, target, options)
    elif not options.verify:
        present(pc, options)
    return EXIT_DONE


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the algorithm is told. Raises UsageError for a setting that it does not have, or a value out of bounds."""
    algorithm = ALGORITHMS[options.algorithm]
    known = [f.name for f in fields(algorithm.settings)]
    if options.rate is not None and "rate" not in known:
        raise UsageError(f"{options.algorithm} has no setting --rate")
    settings = {k: v for k in known if (v := getattr(options, k, None)) is not None}
    try:
        algorithm.choose(settings)
    except CompileError as e:
        raise UsageError(f"{e.problems[0].what} ({e.problems[0].hint})") from None
    return settings


def default_name(model: str, kind: str) -> str:
    """The files' name for a model that has been given none."""
    return model.rpartition(":")[2].rpartition(".")[2] if kind == "module" else Path(model).stem


def compiled(target: Target, options: argparse.Namespace, settings: Mapping[str, Any], watch: Watch) -> PCModule:
    """The model, compiled, with its loss where that is not the built-in one."""
    loss = cross_entropy if options.loss == "cross-entropy" else None
    pc = pccompile.compile(
        target.model,
        target.args,
        target.kwargs,
        algorithm=options.algorithm,
        granularity=options.granularity,
        feedback=options.feedback,
        derivatives=options.derivatives,
        loss=loss,
        hook=watch,
        check=options.check,
        on_divergence="ignore" if options.verify else "raise",
        **settings,
    )
    if loss or measures(pc.options):
        given = Bench(pc, target.args or (), target.kwargs, loss, None, options.seed).target
        pc.prepare(target.args or (), target.kwargs, loss=loss, target=given)
    watch.finish()
    return pc


def verified(pc: PCModule, target: Target, options: argparse.Namespace) -> bool:
    """Print the comparison; whether all is well."""
    loss = pc.criterion
    with redirect_stdout(sys.stderr):
        if target.path is not None:
            from pccompile.report.reference import verify_file

            report = verify_file(pc, target.path, target.args or (), options.seed, loss=loss)
        else:
            report = pccompile.verify(pc, target.args or (), target.kwargs, seed=options.seed, loss=loss)
    if options.json:
        print(as_json(report.as_dict(), indent=2))
    else:
        show(report)
    return report.passed


def reported(pc: PCModule, target: Target, options: argparse.Namespace) -> int:
    """Print what was asked about inference; the exit code says whether a certificate could be given."""
    kind, args, kwargs = report_asked(options), target.args or (), target.kwargs or {}
    found: Any
    with redirect_stdout(sys.stderr):
        if kind == "certify-locality":
            found = pc.locality()
        elif kind == "cost":
            found = pc.cost(args, kwargs)
        else:
            given = Bench(pc, args, kwargs, None, None, options.seed).target
            found = pc.analyse(args, kwargs, target=given, kinds=[kind])
    if options.json:
        print(found.json(indent=2))
    else:
        show(found)
    return EXIT_VERIFY if kind == "certify-locality" and not found.found.local else EXIT_DONE


def settled(pc: PCModule, target: Target, options: argparse.Namespace, shown: str) -> None:
    """Raise CompileError where what is about to be written or printed diverges; say so where nothing is."""
    with redirect_stdout(sys.stderr):
        check = settling(Bench(pc, target.args or (), target.kwargs or {}, None, None, options.seed))
    if check.passed:
        return
    if options.output:
        raise CompileError(f"inference diverges: {check.what}", hint="take a smaller --rate")
    if not options.quiet:
        print(f"{shown}: warning: inference diverges: {check.what}: take a smaller --rate", file=sys.stderr)


def source_of(pc: PCModule, loss: str) -> str:
    """The generated file; without a loss, its two functions that know one are left out."""
    if loss != "none":
        return pc.source
    lines = pc.source.splitlines(keepends=True)
    for node in reversed(ast.parse(pc.source).body):
        if isinstance(node, ast.FunctionDef) and node.name in ("clamp", "step"):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            del lines[first : node.end_lineno]
            while first < len(lines) and not lines[first].strip():
                del lines[first]
    return "".join(lines).rstrip() + "\n"


def present(pc: PCModule, options: argparse.Namespace) -> None:
    """Print what was asked for; a summary if it was nothing."""
    if options.explain is not None:
        show(pc.explain(options.explain or None))
    elif options.emit == "code" or (options.output == "-" and not options.emit):
        sys.stdout.write(source_of(pc, options.loss))
    elif options.emit:
        print(getattr(pc.compiled, options.emit))
    else:
        show(pc.summary())


class Watch:
    """What is told while a model is compiled: progress, stages in full, times."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.times: list[tuple[str, float]] = []
        self.active, self.status = True, None
        self.start = time.monotonic()
        self.folder = Path(options.dump_dir) if options.dump_dir else None
        if self.folder:
            self._writable(self.folder)

    def _writable(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as e:
            reason = getattr(e, "strerror", None) or e
            raise CompileError(f"cannot write to {printable(str(folder))}: {reason}") from e

    def __call__(self, stage: str, result: object, seconds: float) -> None:
        """A stage is done."""
        if not self.active:
            return
        self.times.append((stage, seconds))
        if self.status is not None:
            self.status.update(f"compiling: {stage} done")
        if stage in HIDDEN:
            return
        if stage in self.options.print_after:
            print(f"# after {stage}\n{text(result)}", file=sys.stderr)
        if self.folder:
            self.dump(self.folder, stage, result)

    def dump(self, folder: Path, stage: str, result: object) -> None:
        """Write one numbered file. Raises OutputError rather than overwrite a file of somebody else's."""
        number = sum(name not in HIDDEN for name, _ in self.times)
        path = folder / f"{number:02d}-{stage}.txt"
        check_replaceable([path])
        page = f"# After {stage}. {SEAL}\n{text(result)}\n"
        write_together(folder, {path.name: lambda file: file.write_text(page, encoding="utf-8")})

    @contextmanager
    def progress(self) -> Iterator[None]:
        """A line that moves, where stderr is a terminal."""
        if self.options.quiet or not sys.stderr.isatty():
            with nullcontext():
                yield
            return
        from rich.console import Console

        with Console(file=sys.stderr).status("compiling: export") as status:
            self.status = status  # type: ignore[assignment]
            try:
                yield
            finally:
                self.status = None

    def finish(self) -> None:
        """Compiling is over: what is compiled from now on, for comparisons, is not shown."""
        self.active = False
        for stage in {*self.options.print_after} - {name for name, _ in self.times}:
            print(f"# {stage} had nothing to do", file=sys.stderr)
        if self.options.time_passes:
            total = sum(s for _, s in self.times)
            rows = [*((stage, f"{s:.3f}") for stage, s in self.times if stage not in HIDDEN), ("total", f"{total:.3f}")]
            show(Table(("stage", ">seconds"), tuple(rows)), sys.stderr)

    def talk(self, shown: str, pc: PCModule) -> None:
        """Facts that a user must know, on stderr."""
        if self.options.quiet:
            return
        for fact in (*pc.compiled.program.facts, *(f"warning: {w}" for w in worth_knowing(pc, pc.compiled))):
            print(f"{shown}: {fact}", file=sys.stderr)


def text(result: object) -> str:
    """A stage's result as people read it."""
    match result:
        case Netlist():
            return netlist_text(result.spec)
        case Imported():
            return str(result.graph)
        case Source():
            return result.text
    return str(result)


__all__ = ["EXIT_USAGE", "run"]
