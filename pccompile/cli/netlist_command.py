"""What the command line does with circuits: build, check, transform, simulate, price and export them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from pccompile.api.compile import netlist_options
from pccompile.api.models import as_module, is_onnx
from pccompile.backends.netlist import Netlist, NetlistOptions, Result
from pccompile.backends.netlist.export import exporter
from pccompile.cli.data_files import tensors_of
from pccompile.cli.loading import load
from pccompile.cli.options import ready
from pccompile.cli.progress import Progress
from pccompile.cli.targets import default_name
from pccompile.cli.user_inputs import parsed, user_inputs
from pccompile.diagnostics import EXIT_DONE, EXIT_VERIFY, CompileError, printable
from pccompile.explorer import explore_circuit
from pccompile.files.writing import check_replaceable, write_together
from pccompile.pipeline import Hook, lay_out
from pccompile.report.circuit import random_targets, verify_circuit
from pccompile.report.netlist import resources_data, resources_page, resources_report
from pccompile.report.tables import Page, Table, as_json, count, number, show

TRANSFORMS: dict[str, Callable[[Netlist], Netlist]] = {
    "flatten": lambda net: net.flatten(),
    "untie": lambda net: net.untie(),
    "on-off": lambda net: net.on_off(),
}
"""The passes on netlists that need no numbers of their own."""


def run(options: argparse.Namespace, shown: str) -> int:
    """Do what `options` ask for; what is returned is the exit code. Raises CompileError and UsageError."""
    progress = Progress(options)
    code = built(options, shown, progress)
    progress.finish()
    return code


def built(options: argparse.Namespace, shown: str, hook: Hook) -> int:
    """The exit code, once the circuit is there and everything has been done with it."""
    if ready(options):
        net = Netlist.load(options.model)
        check_ports(net, options)
        return carried_out(net, options, options.name or default_name(options.model))
    how = settings_of(options)
    with redirect_stdout(sys.stderr):  # what a model prints is no result
        target = load(options.model, user_inputs(options, strict=False), options.seed, options.trust_code)
        name = options.name or target.name
        model, args, locate = as_module(target.model, target.args, target.kwargs)
        report = None
        if options.verify:
            with anew(model, options.seed) as notes:
                report = verify_circuit(
                    model, args, target.kwargs, how, locate=locate, seed=options.seed, name=name, notes=notes
                )
    if report is not None:
        print(as_json(report.as_dict(), indent=2)) if options.json else show(report)
        if not report.passed:
            print(f"{shown}: verification failed, nothing written", file=sys.stderr)
            return EXIT_VERIFY
        if not options.output:
            return EXIT_DONE
    net = lay_out(model, args, target.kwargs, how, locate, hook, name).netlist
    check_ports(net, options, target.inputs)
    return carried_out(net, options, name)


@contextmanager
def anew(model: nn.Module, seed: int) -> Iterator[tuple[str, ...]]:
    """Weights of an ONNX file that are one number throughout are random inside: gradients through them mean nothing.

    Gives what to tell the reader of it.
    """
    if not is_onnx(model):
        yield ()
        return
    from pccompile.report.reference import constant_weights, redrawn

    constant = constant_weights(model)
    if not constant:
        yield ()
        return
    with redrawn(model, seed):
        yield (f"drawn anew: {count(len(constant), 'weight')} of one number throughout",)


def settings_of(options: argparse.Namespace) -> NetlistOptions:
    """How the circuit is built."""
    given = {"rate": options.rate, "eta": options.eta, "ticks": options.ticks}
    return netlist_options(options.loss, {k: v for k, v in given.items() if v is not None})


def transformed(net: Netlist, text: str) -> Netlist:
    """The netlist after one `--apply`, which has been checked."""
    name, _, value = text.partition("=")
    return net.split_fan_in(int(value)) if value else TRANSFORMS[name](net)


def carried_out(net: Netlist, options: argparse.Namespace, name: str) -> int:
    """Transform a netlist, then simulate, export or price it, and write it where there is a folder."""
    for transform in options.apply:
        net = transformed(net, transform)
    if options.simulate:
        present(simulated(net, options), net, options)
        return EXIT_DONE
    if options.bits and not options.export:
        net = quantised(net, options.bits, options)
    if options.explore:
        how = {"ticks": options.ticks, "chip": options.chip, "title": name, "seed": options.seed}
        print(printable(str(explore_circuit(net, **presented(net, options), **how).save(options.explore))))
        return EXIT_DONE
    if options.export:
        for path in exported(replace(net, spec=msgspec.structs.replace(net.spec, name=name)), options):
            print(printable(str(path)))
        return EXIT_DONE
    costs = net.resources(options.chip)
    page = resources_page(net, options.chip) if options.report else ""
    if options.output:
        for path in net.save(options.output, name):
            print(printable(str(path)))
    if options.report:
        written(Path(options.report), page)
        print(printable(options.report))
    show(as_json(resources_data(costs), indent=2) if options.json else resources_report(costs))
    return EXIT_DONE


def written(path: Path, page: str) -> None:
    """Write a page, never over somebody else's file. Raises CompileError."""
    check_replaceable([path])
    write_together(path.parent, {path.name: lambda file: file.write_text(page, encoding="utf-8")})


def quantised(net: Netlist, bits: tuple[int, int], options: argparse.Namespace) -> Netlist:
    """The netlist in fixed point, its ranges those of one presentation."""
    return net.quantise(*bits, presentations=[net.presentation(**presented(net, options))])


def exported(net: Netlist, options: argparse.Namespace) -> tuple[Path, ...]:
    """The files of one exporter. Raises CompileError where it cannot say all of the netlist, naming what."""
    writer = exporter(options.export)
    if options.bits or (writer.name == "verilog" and not net.quantised):
        net = quantised(net, options.bits or (8, 16), options)
    more: dict[str, Any] = {"spiking": True} if options.spiking else {}
    return writer.emit(net, Path(options.output or "."), **more)


def presented(net: Netlist, options: argparse.Namespace) -> dict[str, Any]:
    """Inputs, targets and clamps by name: from a file, else drawn; numbers on the command line stand before both."""
    numbers = tensors_of(Path(options.data)) if options.data is not None else None
    if numbers is None:
        numbers = random_inputs(net, options.seed) | random_targets(net, options.seed)
    numbers |= parsed("--value", options.value)
    return {kind: {k: v for k, v in numbers.items() if k in names} for kind, names in ports(net).items()}


def ports(net: Netlist) -> dict[str, set[str]]:
    """The names of a circuit's ports by what is presented there."""
    spec = net.spec
    return {"inputs": {*spec.inputs, *spec.fixed}, "targets": set(spec.targets), "clamps": set(spec.clamps)}


def check_ports(net: Netlist, options: argparse.Namespace, inputs: Sequence[str] = ()) -> None:
    """Raise CompileError for numbers that no port takes, nor any of `inputs`, those of the model that was built."""
    known = set().union(*ports(net).values())
    given = {"--value": parsed("--value", options.value)}
    if options.data is not None:
        given[printable(options.data)] = tensors_of(Path(options.data))
    for source, numbers in given.items():
        if unknown := sorted(set(numbers) - known - {*inputs}):
            hint = f"its ports: {', '.join(sorted(known))}"
            raise CompileError(f"{source}: the circuit has no port {printable(unknown[0])}", hint=hint)


def random_inputs(net: Netlist, seed: int) -> dict[str, torch.Tensor]:
    """Normal numbers and tokens for the inputs that are not wiring."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for name, port in net.spec.inputs.items():
        if port.encode:
            width = net.spec.populations[port.population].shape[port.axis]
            found[name if port.argument is None else port.argument] = torch.randint(width, port.shape, generator=draw)
        else:
            found[name] = torch.randn(port.shape, generator=draw, dtype=torch.float64)
    return found


def simulated(net: Netlist, options: argparse.Namespace) -> Result:
    """The netlist after settling, and a learning phase if that was asked for."""
    return net.simulate(
        **presented(net, options), ticks=options.ticks, learn=options.learn, bits=options.bits,
        rounding=options.rounding, seed=options.seed, progress=not options.quiet,
    )  # fmt: skip


def present(result: Result, net: Netlist, options: argparse.Namespace) -> None:
    """Print outputs, errors and changes of parameters."""
    spec = net.spec
    moved = {k: result.params[k] - net.tensors[k] for k in sorted(spec.plastic())} if options.learn else {}
    if options.json:
        page = {
            "outputs": {k: v.tolist() for k, v in result.outputs.items()},
            "errors": {k: result.states[k].tolist() for k, p in spec.populations.items() if p.role == "error"},
            "changes": {k: v.tolist() for k, v in moved.items()},
            "saturations": dict(result.saturations),
        }
        print(as_json(page))
        return
    rows = [("output", k, spec.outputs[k].shape, v) for k, v in result.outputs.items()]
    rows += [("error", k, p.shape, result.states[k]) for k, p in spec.populations.items() if p.role == "error"]
    rows += [("change", k, v.shape, v) for k, v in moved.items()]
    table = Table(
        ("", "name", "shape", ">norm", ">largest"),
        tuple(
            (kind, name, "×".join(map(str, shape)), number(float(np.linalg.norm(v)), 4), number(_largest(v), 4))
            for kind, name, shape, v in rows
        ),
    )
    ticks = options.ticks if options.ticks is not None else {p.name: p.ticks for p in spec.phases}.get("settle", 1)
    formats = "float64" if not options.bits else f"{options.bits[0]}-bit weights, {options.bits[1]}-bit states"
    lines = [f"{count(ticks, 'tick')} of settling{', one of learning' * bool(moved)}, {formats}"]
    sizes = {k: p.size for k, p in spec.populations.items()} | {k: v.size for k, v in net.tensors.items()}
    lines += [f"saturated: {n} of {sizes[k]} of {k}" for k, n in result.saturations.items()]
    if (net.quantised or options.bits) and not result.saturations:
        lines.append("nothing saturated")
    show(Page((table, "", *lines)))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) if values.size else 0.0
