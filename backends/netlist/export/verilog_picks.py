"""Functions of a circuit that say which slot of a select unit wins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pccompile.backends.netlist.export.verilog_text import comment


class Pick(NamedTuple):
    """What a function that says which slot wins depends on; bits of a slot's number, total bits of a state."""

    slots: tuple[int, ...]
    rank: int
    upwards: bool
    bits: int
    total: int


class Picks(dict[Pick, str]):
    """The names of the functions that are needed so far."""

    def named(self, pick: Pick) -> str:
        """The name of the function for `pick`."""
        return self.setdefault(pick, f"pick_{len(self)}")

    def texts(self) -> Iterator[str]:
        """Each function."""
        for (slots, rank, upwards, bits, total), name in self.items():
            ahead = ">" if upwards else "<"
            arguments = ", ".join(f"input signed [{total - 1}:0] c{k}" for k in slots)
            best = "largest" if upwards else "smallest"
            lines = [f"  {comment(f'the slot {rank} places behind the {best}, the first of equals')}",
                     f"  function automatic [{bits - 1}:0] {name}({arguments});", "    begin",
                     f"    {name} = {slots[0]};"]  # fmt: skip
            for k in slots:
                before = [f"(c{j} {ahead}{'=' if j < k else ''} c{k})" for j in slots if j != k]
                lines.append(f"    if ({' + '.join(before) or 0} == {rank}) {name} = {k};")
            yield "\n".join([*lines, "    end", "  endfunction"])
