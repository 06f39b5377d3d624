"""The options that say what values cost against their predictions: names and numbers, which never become code."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from pccompile.diagnostics import CompileError, UsageError, printable

SYNTAX = "[NAME=]ENERGY[:NUMBERS], such as huber:0.5 or encoder.fc1=student-t:nu=4,sigma=1"


def energy_options(parser: argparse.ArgumentParser) -> None:
    """Energies and precisions, for all hidden vertices or for those of a vertex or a module."""
    group = parser.add_argument_group("what values cost against their predictions (half the squared error by default)")
    group.add_argument(
        "--energy", action="append", default=[], metavar="[NAME=]ENERGY[:NUMBERS]",
        help="huber:0.5, fc1=student-t:4,1 or fc1=bernoulli:entropy; without a name, of all hidden vertices",
    )  # fmt: skip
    group.add_argument(
        "--precision", action="append", default=[], metavar="[NAME=]NUMBER",
        help="the weight of squared errors; learned:SHAPE,RATE[,STEP] for one that learns under a Gamma prior",
    )  # fmt: skip


def energy_checks(options: argparse.Namespace, circuit: bool) -> list[tuple[Any, str]]:
    """What is wrong with options about energies where there is a circuit."""
    return [(circuit and getattr(options, n), f"--{n} does not go with circuits") for n in ("energy", "precision")]


def energy_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `pccompile.compile` takes as energies and precision. Raises UsageError."""
    found: dict[str, Any] = {}
    if options.energy:
        found["energies"] = _table("--energy", [(name, _energy(text)) for name, text in _named(options.energy)])
    if options.precision:
        precisions = [(name, _precision(text)) for name, text in _named(options.precision)]
        found["precision"] = _table("--precision", precisions)
    return found


def _named(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each NAME=TEXT in two; the name is '' where there is none. What stands behind a colon holds no name."""
    for text in texts:
        head, colon, rest = text.partition(":")
        name, _, what = head.rpartition("=")
        yield name, what + colon + rest


def _table(option: str, pairs: Sequence[tuple[str, Any]]) -> Any:
    """One for all, or a table by name. Raises UsageError where both are given, or a name twice."""
    names = [name for name, _ in pairs]
    if "" in names:
        if len(names) > 1:
            raise UsageError(f"{option} without a name is for all vertices: give it once, or a name with each")
        return pairs[0][1]
    if twice := [n for n in names if names.count(n) > 1]:
        raise UsageError(f"{option} is given twice for {printable(twice[0], 60)}")
    return dict(pairs)


def _energy(text: str) -> Any:
    """The energy that a text names, its numbers in the order of its parameters or by their names."""
    from pccompile.ops.energies import ENERGIES, energy

    name, _, rest = text.partition(":")
    if name not in ENERGIES:
        raise UsageError(f"--energy {printable(text, 60)}: the energies are {', '.join(ENERGIES)}; written {SYNTAX}")
    known, settings, entropy = list(ENERGIES[name].parameters), dict[str, float](), False
    for position, part in enumerate(filter(None, rest.split(","))):
        key, equals, given = part.rpartition("=")
        if part == "entropy":
            entropy = True
            continue
        if not equals:
            if position >= len(known):
                raise UsageError(f"--energy {printable(text, 60)}: {name} takes {len(known)} numbers at most")
            key = known[position]
        settings[key] = _number("--energy", given)
    try:
        return energy(name, entropy=entropy, **settings)
    except CompileError as e:
        raise UsageError(f"--energy {printable(text, 60)}: {e.problems[0].what} ({e.problems[0].hint})") from None


def _precision(text: str) -> Any:
    """A number, or a precision that learns."""
    from pccompile.ops.energies import learned_precision

    word, _, rest = text.partition(":")
    if word != "learned":
        return _number("--precision", text)
    numbers = [_number("--precision", part) for part in filter(None, rest.split(","))]
    if len(numbers) not in (0, 2, 3):
        raise UsageError(f"--precision {printable(text, 60)}: learned takes SHAPE,RATE or SHAPE,RATE,STEP")
    try:
        return learned_precision(*numbers[:2], step=[*numbers, 0.1][2 if len(numbers) > 2 else -1])
    except CompileError as e:
        raise UsageError(f"--precision {printable(text, 60)}: {e.problems[0].what} ({e.problems[0].hint})") from None


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option}: {printable(text, 40)!r} is not a number")
    return value
