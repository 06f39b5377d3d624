"""How memory is written that a loop reuses: its name holds None before the loop, and is freed behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pccompile.backends.torch.in_place import OVERWRITING
from pccompile.backends.torch.layout import STEP, WIDTH, deleted, folded
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Line, Statement, loops_of
from pccompile.ir import Ref
from pccompile.ir.names import Namer


class Memories:
    """The memories of the loop under way, by name."""

    def __init__(self, lines: Iterable[Line], namer: Namer, speller: Speller) -> None:
        self.namer, self.speller = namer, speller
        self.carried = {c.next for loop in loops_of(lines) for c in loop.carried}
        self.names: list[str] = []

    def assignment(self, s: Statement, name: str, spell: Callable[[Ref], str]) -> list[str]:
        """The lines of a statement that reuses memory. What lasts beyond its turn has another name than its memory."""
        if s.reuses is not None and s.reuses != s.target:
            return [f"{name} = {OVERWRITING[s.op]}({spell(s.reuses)})"]
        lasts = s.target in self.carried or bool(s.keeps)
        memory = self.namer(f"memory_{name}") if lasts else name
        self.names.append(memory)
        line = f"{name} = {self.speller.written(s.op, s.args, spell, memory)}"
        return [line, f"{memory} = {name}"] if lasts else [line]

    @contextmanager
    def of_loop(self, text: list[str], depth: int) -> Iterator[None]:
        """Within, a loop is printed: what goes before and behind it is added to `text`."""
        head, outside = len(text), self.names
        self.names = []
        yield
        text[head:head] = nothing(self.names, STEP * depth)
        if self.names:
            text += folded(STEP * depth + deleted(self.names, depth))
        self.names = outside


def released(names: Iterable[str], depth: int, closures: bool) -> list[str]:
    """Lines that let go of values. closures: comprehensions read some, of which torch.compile takes no `del`."""
    return nothing(names, STEP * depth) if closures else folded(STEP * depth + deleted(names, depth))


def nothing(names: Iterable[str], indent: str) -> list[str]:
    """Lines that give each of `names` None, as many in one as have room."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(f" = {name}") <= WIDTH:
            lines[-1] = f"{lines[-1].removesuffix('None')}{name} = None"
        else:
            lines.append(f"{indent}{name} = None")
    return lines
