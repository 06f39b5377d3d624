"""`pccompile diff A B`: two models, one model by two algorithms, or two circuits, part by part."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pccompile.api.models import as_module
from pccompile.backends.netlist import Netlist
from pccompile.cli.checks import pair
from pccompile.cli.energy_options import energy_settings
from pccompile.cli.loading import Target, load
from pccompile.cli.netlist_command import settings_of as circuit_settings
from pccompile.cli.options import circuit, ready
from pccompile.cli.progress import Progress
from pccompile.cli.torch_command import compiled, settings_of
from pccompile.cli.user_inputs import unknown, user_inputs
from pccompile.diagnostics import EXIT_DONE, UsageError, printable
from pccompile.pipeline import lay_out
from pccompile.report.model_comparison import compare_models
from pccompile.report.tables import as_json, show


def run(options: argparse.Namespace, shown: str) -> int:
    """Print what differs; what is returned is the exit code. Raises CompileError and UsageError."""
    both = pair(options)
    build = circuit_model if circuit(both[0]) else torch_model
    models, inputs = zip(*(build(one) for one in both), strict=True)
    check_names(options, inputs)
    found = compare_models(models[0], models[1], titles(both))
    show(as_json(found.as_dict(), indent=2) if options.json else found)
    return EXIT_DONE


def titles(both: tuple[argparse.Namespace, argparse.Namespace]) -> tuple[str, str]:
    """What the two are called: by their files, and by their algorithms where these differ."""
    names = [printable(os.path.basename(o.model), 60) for o in both]
    if names[0] == names[1]:
        names = [printable(o.model, 60) for o in both]
    if both[0].algorithm != both[1].algorithm:
        names = [f"{name} {o.algorithm}" for name, o in zip(names, both, strict=True)]
    elif names[0] == names[1]:
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    return names[0], names[1]


def check_names(options: argparse.Namespace, inputs: Sequence[tuple[str, ...]]) -> None:
    """Raise UsageError for an input that neither model has."""
    known, given = sorted({name for names in inputs for name in names}), user_inputs(options)
    names = {"--shape": [s.name for s in given.shapes], "--value": [*given.values], "--data": [*given.data]}
    for option, several in names.items():
        for name in several:
            if name and name not in known:  # the only tensor of a file may have no name
                raise UsageError(unknown(option, name, known))


def torch_model(options: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """One model, compiled, and the names of its inputs."""
    progress = Progress(options)
    with progress.shown(), redirect_stdout(sys.stderr):
        target = loaded(options)
        settings = {**settings_of(options), **energy_settings(options)}
        return compiled(target, options, settings, progress), target.inputs


def loaded(options: argparse.Namespace) -> Target:
    """One model, whose inputs may be some of those that are named."""
    return load(options.model, user_inputs(options, strict=False, shared=True), options.seed, options.trust_code)


def circuit_model(options: argparse.Namespace) -> tuple[Netlist, tuple[str, ...]]:
    """One circuit, read or built, and the names of its inputs."""
    if ready(options):
        net = Netlist.load(Path(options.model))
        return net, tuple(net.spec.inputs)
    with redirect_stdout(sys.stderr):
        target = loaded(options)
        model, args, locate = as_module(target.model, target.args, target.kwargs)
        how = circuit_settings(options)
        return lay_out(model, args, target.kwargs, how, locate, Progress(options), target.name).netlist, target.inputs
