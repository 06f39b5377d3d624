"""What a file may make the compiler do: one budget, counted before the work is done.

A small file can ask for anything: ten nodes that double a tensor thirty times, a loop of 10¹² steps, functions that
call each other twice. What it asks for is counted by name, and refused in one line beyond a limit that its reader can
raise. What a file holds in full, its weights, is not counted: it raises the limits instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace

from pccompile.diagnostics import NOWHERE, CompileError, Location, UsageError, printable


@dataclass(frozen=True)
class Budget:
    """The most that one file may ask for.

    memory: bytes of the values that an ONNX graph computes when it is tried on example inputs, all of them together.
    weights: bytes of weights that an ONNX graph makes of a number and a shape.
    operations: multiplications, and 50 for each element that passes through another operation, when it is tried; of a
        circuit one for each synapse and 50 for each unit and tick that its description asks for.
    nodes: nodes of an ONNX graph after its functions have been put in their places.
    steps: nodes that are run in loops and step by step in recurrent layers.
    entries: numbers that are listed one by one on the way, such as the n-grams of a text.
    characters: characters of all strings that are computed.
    ticks: ticks that a circuit's description asks for.
    units: units of a circuit, and states that its delays keep.
    synapses: synapses that are listed one by one.
    depth: expressions, graphs and records inside each other.
    """

    memory: int = 3 * 2**27
    weights: int = 5 * 2**27
    operations: int = 2**38
    nodes: int = 50_000
    steps: int = 20_000
    entries: int = 2**22
    characters: int = 2**24
    ticks: int = 10**4
    units: int = 10**7
    synapses: int = 2 * 10**7
    depth: int = 90

    def raised(self, factor: float = 1, **limits: int) -> Budget:
        """This budget with every limit `factor` times as high, and those that are named as they are given.

        Raises UsageError for a name that is no limit, and for a number that is not above 0.
        """
        known = [f.name for f in fields(self)]
        if unknown := sorted(set(limits) - set(known)):
            raise UsageError(f"there is no budget {printable(unknown[0], 40)}; the budgets are {', '.join(known)}")
        if not all(0 < n < 2**63 for n in (factor, *limits.values())):
            raise UsageError("a budget is a number above 0 and below 2**63")
        return replace(self, **{n: min(int(getattr(self, n) * factor), 2**63) for n in known} | limits)


WORDS = {
    "memory": "bytes of values",
    "weights": "bytes of weights",
    "operations": "operations",
    "nodes": "nodes",
    "steps": "steps",
    "entries": "entries",
    "characters": "characters",
    "ticks": "ticks",
    "units": "units",
    "synapses": "synapses",
    "depth": "levels",
}
"""What is counted, in the plural."""


class BudgetError(CompileError):
    """A file asks for more than its budget."""


@dataclass
class Account:
    """What has been spent of a budget."""

    budget: Budget
    spent: Counter[str] = field(default_factory=Counter)

    def spend(self, name: str, amount: int, what: str, where: Location = NOWHERE) -> None:
        """Count `amount` more of `name`, which `what` asks for. Raises BudgetError beyond the limit."""
        self.spent[name] += amount
        if self.spent[name] > getattr(self.budget, name):
            raise exceeded(name, self.spent[name], getattr(self.budget, name), what, where)


def exceeded(name: str, asked: int, limit: int, what: str, where: Location = NOWHERE) -> BudgetError:
    """The error for something that asks for more than the limit called `name`."""
    return BudgetError(
        f"{what} asks for {size(asked)} {WORDS[name]}; at most {size(limit)} are taken",
        where,
        hint=f"if the file is to be trusted, --budget {name}={size(asked, exact=True)} or pccompile.budget allows it",
    )


def size(number: int, exact: bool = False) -> str:
    """A count as people read it; as an option takes it where it is to be `exact`."""
    if number >= 10**15:
        return f"{float(min(number, 10**300)):.2g}" if not exact else "…"
    return str(number) if exact else f"{number:,}"


DEFAULT = Budget()
_BUDGET: ContextVar[Budget] = ContextVar("budget", default=DEFAULT)
_ACCOUNT: ContextVar[Account | None] = ContextVar("account", default=None)


@contextmanager
def budget(factor: float = 1, **limits: int) -> Iterator[Budget]:
    """Within: files may ask for `factor` times as much, and of each limit that is named for what is given.

    The names are the fields of the `Budget` that the context gives: `with pccompile.budget(4, nodes=10**6): ...`.
    Raises UsageError for another name, and for a number that is not above 0.
    """
    token = _BUDGET.set(_BUDGET.get().raised(factor, **limits))
    try:
        yield _BUDGET.get()
    finally:
        _BUDGET.reset(token)


def limit(name: str) -> int:
    """The limit called `name` that holds here."""
    return int(getattr(_BUDGET.get(), name))


def opened(stored: int = 0) -> Account:
    """An account from which nothing has been spent. stored: as for `account`."""
    allowed = _BUDGET.get()
    return Account(replace(allowed, memory=allowed.memory + 64 * stored, operations=allowed.operations + 8192 * stored))


@contextmanager
def account(stored: int = 0) -> Iterator[Account]:
    """Within: `spend` counts from nothing. stored: bytes that the file holds, which raise what it may compute."""
    spent = opened(stored)
    token = _ACCOUNT.set(spent)
    try:
        yield spent
    finally:
        _ACCOUNT.reset(token)


def spend(name: str, amount: int, what: str, where: Location = NOWHERE) -> None:
    """Count `amount` more of `name` in the account that is open, or by itself where none is. Raises BudgetError."""
    (_ACCOUNT.get() or Account(_BUDGET.get())).spend(name, amount, what, where)


def parse_budget(texts: list[str]) -> tuple[float, dict[str, int]]:
    """The factor and the limits that `--budget` options say. Raises UsageError."""
    factor, limits = 1.0, dict[str, int]()
    for text in texts:
        name, equals, number = text.partition("=")
        try:
            value = float(number if equals else name)
            if equals:
                limits[name] = int(value)
            else:
                factor = value
        except (ValueError, OverflowError):
            raise UsageError(f"--budget {printable(text, 60)}: a factor, or NAME=NUMBER") from None
    Budget().raised(factor, **limits)
    return factor, limits
