"""Where things came from, and errors that say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_DONE, EXIT_MODEL, EXIT_USAGE, EXIT_VERIFY, EXIT_BUG = 0, 1, 2, 3, 70


@dataclass(frozen=True, slots=True)
class Location:
    """A place in the user's model: module path or ONNX node name, and file and line where known."""

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        return " ".join(filter(None, (place, f"({self.module})" if self.module else "")))


NOWHERE = Location()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a model: what, where, and what to do about it."""

    what: str
    where: Location = NOWHERE
    hint: str = ""

    def __str__(self) -> str:
        place = f" at {self.where}" if str(self.where) else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"error: {printable(self.what)}{printable(place)}{hint}"


class CompileError(Exception):
    """A model that cannot be compiled. `problems` lists everything that is wrong, not only the first thing."""

    def __init__(self, what: str | Sequence[Problem], where: Location = NOWHERE, hint: str = "") -> None:
        self.problems = (Problem(what, where, hint),) if isinstance(what, str) else tuple(what)
        super().__init__("\n".join(map(str, self.problems)))


class RuleError(CompileError):
    """An operation has no rule where lengths are free; it may have one where they are numbers."""


class CaptureError(CompileError):
    """torch.export cannot capture a model whole; it may run in pieces."""


class ModelValueError(CompileError, ValueError):
    """A model refuses its arguments with a ValueError of its own, as it does in eager mode."""


class OutputError(CompileError):
    """What was compiled cannot be written."""


class UsageError(Exception):
    """A command line that says something impossible; the model is not to blame."""


class Collector:
    """Gathers problems so that a user sees all of them at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, what: str, where: Location = NOWHERE, hint: str = "") -> None:
        """Record one problem; an equal one is recorded once."""
        self.extend([Problem(what, where, hint)])

    def extend(self, problems: Iterable[Problem]) -> None:
        """Record each problem that is not there yet."""
        self.problems += [p for p in dict.fromkeys(problems) if p not in self.problems]

    def raise_if_any(self, kind: type[CompileError] = CompileError) -> None:
        """Raise one error with everything that was recorded."""
        if self.problems:
            raise kind(self.problems)


def printable(text: str, limit: int = 300) -> str:
    """`text` on one line, safe for a terminal: invisible characters escaped, the middle of a long text cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]}…({len(text)} characters)…{text[-limit // 4 :]}"


def first_line(error: BaseException) -> str:
    """What an error of torch says first, or its kind where it says nothing."""
    return next((ln.strip() for ln in str(error).splitlines() if ln.strip()), type(error).__name__)


def listing(names: Iterable[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    names = [printable(n, 80) for n in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
