"""What the command line does with a model for torch: compile, verify, report, and only then write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pccompile
from pccompile.algorithms import ALGORITHMS
from pccompile.api.module import PCModule
from pccompile.cli.energy_options import energy_settings
from pccompile.cli.grammar import DRAWN
from pccompile.cli.loading import Target, load
from pccompile.cli.options import report_asked
from pccompile.cli.progress import Progress
from pccompile.cli.targets import default_name, kind_of
from pccompile.cli.user_inputs import user_inputs
from pccompile.diagnostics import (
    EXIT_DONE,
    EXIT_MODEL,
    EXIT_VERIFY,
    CaptureError,
    CompileError,
    UsageError,
    printable,
)
from pccompile.report.doctor import examine
from pccompile.report.gradients import Bench
from pccompile.report.losses import cross_entropy
from pccompile.report.tables import as_json, show
from pccompile.report.verify import settling
from pccompile.runtime.automatic_rates import measures
from pccompile.runtime.saving import check_writable, save_generated


def run(options: argparse.Namespace, shown: str) -> int:
    """Do what `options` ask for; what is returned is the exit code. Raises CompileError and UsageError."""
    settings = {**settings_of(options), **energy_settings(options)}
    inputs = user_inputs(options)
    name = options.name or default_name(options.model)
    folder = Path(options.output) if options.output not in (None, "-") else None
    if folder:
        check_writable(folder, name)
    if options.verify and kind_of(options.model) == "onnx":
        from pccompile.report.reference import require_onnxruntime

        require_onnxruntime()
    progress = Progress(options)

    def made() -> tuple[PCModule, Target]:
        with progress.shown(), redirect_stdout(sys.stderr):  # what a model prints is no result
            target = load(options.model, inputs, options.seed, options.trust_code)
            return compiled(target, options, settings, progress), target

    return carried_out(options, shown, made, progress, folder, name)


def carried_out(
    options: argparse.Namespace,
    shown: str,
    made: Callable[[], tuple[PCModule, Target]],
    progress: Progress,
    folder: Path | None,
    name: str,
) -> int:
    """Compile, check, and only then write or print."""
    if options.doctor:
        found = examine(shown, options.model, lambda: made()[0])
        show(found.json(indent=2) if options.json else found)
        return EXIT_MODEL if found.problems else EXIT_DONE
    pc, target = made()
    progress.talk(shown, pc)
    if options.verify and not verified(pc, target, options):
        print(f"{shown}: verification failed, nothing written", file=sys.stderr)
        return EXIT_VERIFY
    if pc.compiled.source.moving and options.check and not (options.verify or report_asked(options)):
        settled(pc, target, options, shown)
    if folder:
        for path in save_generated(source_of(pc, options.loss), pc.state(), folder, name):
            print(printable(str(path)))
    elif options.explore:
        explored(pc, target, options)
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


def compiled(target: Target, options: argparse.Namespace, settings: Mapping[str, Any], progress: Progress) -> PCModule:
    """The model, compiled, with its loss where that is not the built-in one."""
    loss = cross_entropy if options.loss == "cross-entropy" else None
    try:
        pc = module_of(target, options, settings, progress, loss)
    except CaptureError as e:
        if options.capture == "path" or target.path is not None:
            raise
        hint = "--capture path takes the path of the example inputs, and the file raises OtherPath on another"
        raise CaptureError((*e.problems[:-1], replace(e.problems[-1], hint=hint))) from e
    if loss or measures(pc.options):
        given = Bench(pc, target.args or (), target.kwargs, loss, None, options.seed).target
        pc.prepare(target.args or (), target.kwargs, loss=loss, target=given)
    progress.finish()
    return pc


def module_of(
    target: Target, options: argparse.Namespace, settings: Mapping[str, Any], progress: Progress, loss: Any
) -> PCModule:
    """The model as it is compiled by default: with the built-in loss, if `loss` is None."""
    pc: PCModule = pccompile.compile(
        target.model,
        target.args,
        target.kwargs,
        algorithm=options.algorithm,
        granularity=options.granularity,
        feedback=options.feedback,
        derivatives=options.derivatives,
        loss=loss,
        hook=progress,
        check=options.check,
        capture=options.capture,
        on_divergence="ignore" if options.verify else "raise",
        **settings,
    )
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
    if options.plot:
        found.plot(options.plot)
    if options.json:
        print(found.json(indent=2))
    else:
        show(found)
    return EXIT_VERIFY if kind == "certify-locality" and not found.found.local else EXIT_DONE


def explored(pc: PCModule, target: Target, options: argparse.Namespace) -> None:
    """Write the page that was asked for, and print where it is."""
    args, kwargs = target.args or (), target.kwargs or {}
    given = Bench(pc, args, kwargs, None, None, options.seed).target
    title = options.name or default_name(options.model)
    with redirect_stdout(sys.stderr):
        found = pc.explore(
            args,
            kwargs,
            target=given,
            algorithms=options.beside,
            title=title,
            seed=options.seed,
        )
    print(printable(str(found.save(options.explore))))


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
    return pc.compiled.source.map.without(pc.source, "clamp", "step")


def present(pc: PCModule, options: argparse.Namespace) -> None:
    """Print what was asked for; a summary if it was nothing."""
    if options.explain is not None:
        show(pc.explain(options.explain or None))
    elif options.emit == "code" or (options.output == "-" and not options.emit):
        sys.stdout.write(source_of(pc, options.loss))
    elif options.emit in DRAWN:
        print(getattr(pc, options.emit)().rstrip())
    elif options.emit:
        print(getattr(pc.compiled, options.emit))
    else:
        show(pc.summary())
