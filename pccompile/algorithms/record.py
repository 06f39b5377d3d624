"""What an algorithm is: a schedule, its typed settings, and what a reader should know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from pccompile.algorithms.bounds import Bounds
from pccompile.diagnostics import CompileError, printable
from pccompile.ir import PCGraph, Program

if TYPE_CHECKING:
    from torch import Tensor

Auto = Literal["auto"]
"""What a setting may be that is chosen by measuring a batch."""
Number = TypeVar("Number")
COMPILE_OPTIONS = (
    "model", "args", "kwargs", "backend", "dynamic_shapes", "algorithm", "granularity", "loss", "energies", "precision",
    "hook", "check", "constants", "trust_code", "outside_loss", "on_divergence", "feedback", "derivatives", "jit",
    "capture",
)  # fmt: skip
"""What `compile` itself takes: no setting could reach an algorithm under such a name."""


class Choice(NamedTuple):
    """A setting that was chosen by measuring a batch, and why it has this value.

    limit: above it, what has been chosen before is chosen anew. paced: so many steps belong to the rate; where that is
    chosen anew while weights learn, rate · steps stays, and with it how far along its flow inference goes.
    """

    name: str
    value: float
    reason: str
    limit: float = math.inf
    paced: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} was chosen: {self.reason}"


@dataclass(frozen=True)
class Algorithm:
    """One inference algorithm.

    name: as users write it. schedule(pc, settings): the program; it raises CompileError for settings that do not go
    together. settings: a frozen dataclass whose fields come from `setting`.
    granularity: what a vertex is by default, one layer where the answer depends on it.
    equals: what its gradients are: those of "backprop", or in words what they tend to. needs_loss: inference evaluates
    the loss. descends: whether its free energy falls from step to step where the rate is small enough.
    energies: which energies vertices can have instead of half the squared error. roles: whether it moves values, so
    that inputs can be free and vertices observed: its schedule moves `pc.latent` and sets the errors of `pc.ends`.
    estimates: whether the errors that it ends in are those where free energy is least, by which precisions learn.
    mirrors(settings): where every layer is mirrored, how much its own prediction weighs, and that of its mirror.
    automatic(settings, bounds): a choice for each setting that is "auto"; None where the schedule itself knows what
    to take. most_energy(arguments, loss, entries): what ½‖ε‖² over so many entries of hidden vertices comes to at
    most where inference keeps its bound and the loss, this large at the start, is nowhere negative; None where no such
    number is known.
    citation: where it is published.
    Raises ValueError where a setting is called like an option of `compile`.
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
    roles: bool = False
    estimates: bool = True
    mirrors: Callable[[Any], tuple[float, float]] | None = None
    automatic: Callable[[Any, Bounds], tuple[Choice, ...]] | None = None
    most_energy: Callable[[Mapping[str, Any], Tensor, int], Tensor] | None = None

    def __post_init__(self) -> None:
        if taken := [f.name for f in fields(self.settings) if f.name in COMPILE_OPTIONS]:
            raise ValueError(f"{self.name} has a setting {taken[0]}, which is an option of compile: rename the setting")

    def choose(self, given: Mapping[str, Any]) -> Any:
        """Its settings, with defaults where `given` has nothing or None.

        Raises CompileError for a setting that the algorithm does not have, and for a value that it cannot take.
        """
        known = {f.name: f for f in fields(self.settings)}
        chosen = {k: v for k, v in given.items() if v is not None}
        if unknown := sorted(set(chosen) - set(known)):
            if chosen[unknown[0]] == "auto":
                what = f"{self.name} has no {unknown[0]} that could be chosen"
                raise CompileError(what, hint=f"leave it out: {self._without()}")
            hint = f"its settings: {', '.join(known) or 'none'}"
            raise CompileError(f"{self.name} has no setting {', '.join(unknown)}", hint=hint)
        kinds = get_type_hints(self.settings)
        for name, value in chosen.items():
            _check(known[name], kinds[name], value)
        return self.settings(**chosen)

    def _without(self) -> str:
        """Why a setting is not there."""
        if not any(f.name in ("rate", "steps") for f in fields(self.settings)):
            return "its inference takes no steps of a size that could be another one"
        return f"its settings are {', '.join(f.name for f in fields(self.settings))}"

    def measures(self, given: Mapping[str, Any]) -> bool:
        """Whether some of its settings are to be chosen by measuring a batch."""
        return self.automatic is not None and "auto" in [v for v in given.values() if isinstance(v, str)]

    def settle(self, settings: Any, choices: tuple[Choice, ...]) -> tuple[Any, tuple[str, ...]]:
        """`settings` with numbers where they say "auto", and a line about each.

        They are those of `choices`, or the defaults as long as nothing has been measured.
        """
        if self.automatic is None:
            return settings, ()
        chosen, lines = {c.name: c for c in choices}, list[str]()
        for f in fields(settings):
            if getattr(settings, f.name) == "auto":
                value = chosen[f.name].value if f.name in chosen else f.default
                lines.append(str(chosen[f.name]) if f.name in chosen else f"{f.name} {value} {UNMEASURED}")
                settings = replace(settings, **{f.name: value})
        return settings, tuple(lines)


UNMEASURED = "is the default: the automatic one is chosen on the first batch with a target"


def resolved(value: Number | Auto) -> Number:
    """A setting of a schedule, where automatic ones have become numbers."""
    assert not isinstance(value, str), value
    return value


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
        how: dict[str, Any] = {"choices": allowed} if allowed and not _numbers(kind) else {"type": _number(kind)}
        how = {"action": "store_true", "default": None} if kind is bool else how
        default = "" if f.default is None else f" (default: {f.default})"
        words = f", or {' or '.join(allowed)}" if allowed and _numbers(kind) else ""
        found[f.name] = {"help": f"{f.metadata['text']}{words}{default}", **how}
    return found


def _numbers(kind: Any) -> bool:
    """Whether a setting of this type can be a number."""
    return not {int, float}.isdisjoint((kind, *get_args(kind)))


def _number(kind: Any) -> Callable[[str], float | str]:
    """What reads a number of this type, or a word; argparse says of what it refuses that it is no valid one."""
    words, whole = choices(kind), float not in (kind, *get_args(kind))

    def number(text: str) -> float | str:
        if text in words:
            return text
        value = int(text) if whole else float(text)
        if not math.isfinite(value):
            raise ValueError(text)
        return value

    return number


def choices(kind: Any) -> tuple[Any, ...]:
    """The values that a setting of this type can take; () where it takes any."""
    parts = get_args(kind) if get_origin(kind) is not Literal else (kind,)
    return tuple(c for p in parts if get_origin(p) is Literal for c in get_args(p))


def _check(of: Field[Any], kind: Any, value: Any) -> None:
    """Raise CompileError unless `value` is of the type and within the bounds of a setting."""
    text, allowed = of.metadata["text"], choices(kind)
    word = isinstance(value, str) and value in allowed
    if allowed and not word and not _numbers(kind):
        raise CompileError(f"unknown {of.name} {printable(repr(value))}", hint=f"one of {', '.join(map(str, allowed))}")
    if word:
        return
    words = f", or {' or '.join(allowed)}" if allowed else ""
    kinds = set(get_args(kind)) or {kind}
    if kind is bool:
        return
    table = isinstance(value, Mapping) and any(get_origin(k) is Mapping for k in kinds)
    for number in value.values() if table else (value,):
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not (whole or (isinstance(number, float) and float in kinds)):
            raise CompileError(f"{of.name} is {printable(repr(value))}", hint=f"{text}{words}")
        above, below, least = (of.metadata[k] for k in ("above", "below", "least"))
        if (above is not None and not number > above) or (below is not None and not number < below):
            raise CompileError(f"{of.name} is {number}", hint=f"{text}: {_range(above, below)}{words}")
        if least is not None and number < least:
            raise CompileError(f"{of.name} is {number}", hint=f"{text}: {least} or more{words}")


def _range(above: float | None, below: float | None) -> str:
    parts = [f"above {above:g}"] if above is not None else []
    return " and ".join([*parts, f"below {below:g}"] if below is not None else parts)
