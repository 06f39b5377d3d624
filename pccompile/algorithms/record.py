"""What an algorithm is: a schedule, its typed settings, and what a reader should know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pccompile.diagnostics import CompileError, printable
from pccompile.ir import PCGraph, Program


@dataclass(frozen=True)
class Algorithm:
    """One inference algorithm.

    name: as users write it. schedule(pc, settings): the program; it raises CompileError for settings that do not go
    together. settings: a frozen dataclass whose fields come from `setting`.
    granularity: what a vertex is by default, one layer where the answer depends on it.
    equals: what its gradients are: those of "backprop", or in words what they tend to. needs_loss: inference evaluates
    the loss. descends: whether its free energy falls from step to step where the rate is small enough.
    energies: which energies vertices can have instead of half the squared error. citation: where it is published.
    """

    name: str
    schedule: Callable[[PCGraph, Any], Program]
    settings: type
    citation: str
    granularity: Literal["op", "layer"] = "layer"
    equals: str = ""
    needs_loss: bool = True
    descends: bool = True
    energies: Literal["none", "of the error", "any"] = "none"

    def choose(self, given: Mapping[str, Any]) -> Any:
        """Its settings, with defaults where `given` has nothing or None.

        Raises CompileError for a setting that the algorithm does not have, and for a value that it cannot take.
        """
        known = {f.name: f for f in fields(self.settings)}
        chosen = {k: v for k, v in given.items() if v is not None}
        if unknown := sorted(set(chosen) - set(known)):
            hint = f"its settings: {', '.join(known) or 'none'}"
            raise CompileError(f"{self.name} has no setting {', '.join(unknown)}", hint=hint)
        kinds = get_type_hints(self.settings)
        for name, value in chosen.items():
            _check(known[name], kinds[name], value)
        return self.settings(**chosen)


def setting(
    default: Any, text: str, *, above: float | None = None, below: float | None = None, least: float | None = None
) -> Any:
    """A field of an algorithm's settings: its default, what it is, and the numbers that it can take."""
    metadata = {"text": text, "above": above, "below": below, "least": least}
    return field(default=default, metadata=metadata)


def options_of(algorithm: Algorithm) -> dict[str, dict[str, Any]]:
    """For each setting, what argparse takes: its type or choices, and its help."""
    kinds, found = get_type_hints(algorithm.settings), {}
    for f in fields(algorithm.settings):
        allowed, kind = choices(kinds[f.name]), kinds[f.name]
        how: dict[str, Any] = {"choices": allowed} if allowed else {"type": _number(kind)}
        how = {"action": "store_true", "default": None} if kind is bool else how
        default = "" if f.default is None else f" (default: {f.default})"
        found[f.name] = {"help": f"{f.metadata['text']}{default}", **how}
    return found


def _number(kind: Any) -> Callable[[str], float]:
    """What reads a number of this type; argparse says of what it refuses that it is no valid one."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value

    return number if float in (kind, *get_args(kind)) else int


def choices(kind: Any) -> tuple[Any, ...]:
    """The values that a setting of this type can take; () where it takes any."""
    parts = get_args(kind) if get_origin(kind) is not Literal else (kind,)
    return tuple(c for p in parts if get_origin(p) is Literal for c in get_args(p))


def _check(of: Field[Any], kind: Any, value: Any) -> None:
    """Raise CompileError unless `value` is of the type and within the bounds of a setting."""
    text, allowed = of.metadata["text"], choices(kind)
    if allowed and value not in allowed:
        raise CompileError(f"unknown {of.name} {printable(repr(value))}", hint=f"one of {', '.join(map(str, allowed))}")
    if allowed:
        return
    kinds = set(get_args(kind)) or {kind}
    if kind is bool:
        return
    table = isinstance(value, Mapping) and any(get_origin(k) is Mapping for k in kinds)
    for number in value.values() if table else (value,):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not (whole or (isinstance(number, float) and float in kinds)):
            raise CompileError(f"{of.name} is {printable(repr(value))}", hint=text)
        above, below, least = (of.metadata[k] for k in ("above", "below", "least"))
        if (above is not None and not number > above) or (below is not None and not number < below):
            raise CompileError(f"{of.name} is {number}", hint=f"{text}: {_range(above, below)}")
        if least is not None and number < least:
            raise CompileError(f"{of.name} is {number}", hint=f"{text}: {least} or more")


def _range(above: float | None, below: float | None) -> str:
    parts = [f"above {above:g}"] if above is not None else []
    return " and ".join([*parts, f"below {below:g}"] if below is not None else parts)


__all__ = ["Algorithm", "choices", "options_of", "setting"]
