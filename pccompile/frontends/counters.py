"""Numbers that forward counts up: arithmetic on them is written down, so that a program can go on with it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod")
READING = (
    *("__bool__", "__int__", "__float__", "__index__", "__hash__", "__str__", "__repr__", "__neg__", "__abs__"),
    *("__round__", "__trunc__", "__floor__", "__ceil__", "__complex__", "__invert__", "__pos__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__pow__", "__rpow__", "__divmod__", "__rdivmod__"),
    *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "__rand__", "__ror__", "__rxor__", "__format__"),
)


@dataclass(frozen=True)
class Advance:
    """A number that follows from the one that was there: `steps` are (operator, other operand, reflected)."""

    steps: tuple[tuple[str, Any, bool], ...] = ()

    def __call__(self, value: Any) -> Any:
        """The number after a call, from that before it."""
        for name, other, reflected in self.steps:
            value = getattr(operator, name)(*((other, value) if reflected else (value, other)))
        return value


class Counter:
    """Stands for the number `value` during a trace; `used` says whether anything but arithmetic was done with it."""

    def __init__(self, value: Any, advance: Advance | None = None, root: Counter | None = None) -> None:
        self.value, self.advance = value, advance or Advance()
        self.root = self if root is None else root
        self.used = False

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.value)

    def use(self) -> Any:
        """The number itself: what is computed depends on it from here on."""
        self.root.used = True
        return self.value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.use(), name)


def is_counter(value: Any) -> bool:
    """Whether `value` is a Counter, which says of itself that it is a number."""
    return type(value) is Counter


def _arithmetic(name: str, reflected: bool) -> Callable[[Counter, Any], Any]:
    function = getattr(operator, name)

    def apply(counter: Counter, other: Any) -> Any:
        if type(other) not in (int, float, bool):
            return function(*((other, counter.use()) if reflected else (counter.use(), other)))
        value = function(*((other, counter.value) if reflected else (counter.value, other)))
        steps = (*counter.advance.steps, (name, other, reflected))
        return Counter(value, Advance(steps), counter.root)

    return apply


def _reading(name: str) -> Callable[..., Any]:
    def read(counter: Counter, *args: Any) -> Any:
        plain = (a.use() if is_counter(a) else a for a in args)
        return getattr(counter.use(), name)(*plain)

    return read


for _name in ARITHMETIC:
    setattr(Counter, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(Counter, f"__r{_name}__", _arithmetic(_name, reflected=True))
for _name in READING:
    setattr(Counter, _name, _reading(_name))
