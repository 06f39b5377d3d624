"""Pieces of SystemVerilog that both forms use: identifiers, literals, comments, functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pccompile.backends.netlist.export.datapath import Datapath, Table
from pccompile.backends.netlist.simulate.formats import Bits

LINE = 116
"""The most characters of a line that is wrapped."""

LONGEST = 80
"""The most characters of an identifier that is taken from a netlist."""


class Identifiers:
    """Legal, distinct identifiers for the names of a netlist: a prefix that says what it is, then what is legal of it.

    The prefixes keep them apart from keywords and from the names of the ports and functions.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()

    def __call__(self, prefix: str, name: str) -> str:
        """The identifier of a name, the same one each time."""
        if (prefix, name) not in self._given:
            base = f"{prefix}_" + (re.sub(r"[^A-Za-z0-9]+", "_", name)[:LONGEST].strip("_") or "x")
            found, count = base, 1
            while found.lower() in self._taken:
                count += 1
                found = f"{base}_{count}"
            self._taken.add(found.lower())
            self._given[prefix, name] = found
        return self._given[prefix, name]


def comment(text: str) -> str:
    """A line comment that says `text`, or as much of it as cannot end the line or open anything."""
    return "// " + re.sub(r"[^\w .,:;#%()\[\]<>=+*²ᵏ⁻·Σ-]", "?", text, flags=re.UNICODE)


def literal(value: int) -> str:
    """A signed literal that keeps its value in any wider expression."""
    size = abs(value).bit_length() + 1
    return f"-{size}'sd{-value}" if value < 0 else f"{size}'sd{value}"


def word(value: int, total: int) -> str:
    """The digits of `value` in two's complement of so many bits, hexadecimal."""
    return f"{value & ((1 << total) - 1):0{-(-total // 4)}x}"


def wrapped(head: str, pieces: Sequence[str], join: str, tail: str) -> str:
    """`head`, the pieces joined, `tail`, broken into lines."""
    lines, line = [], head
    for i, piece in enumerate(pieces):
        more = (join if i else "") + piece
        if len(line) + len(more) > LINE and line.strip():
            lines.append(line.rstrip())
            line = "      " + more.lstrip()
        else:
            line += more
    return "\n".join([*lines, line + tail])


def saturation(total: int, width: int) -> str:
    """A function that saturates to so many bits."""
    top = literal((1 << total - 1) - 1)
    return f"""  function automatic signed [{total - 1}:0] sat{total}(input signed [{width - 1}:0] v);
    sat{total} = v > {top} ? {total}'sh{word((1 << total - 1) - 1, total)} : \
v < -{top} ? {total}'sh{word(-(1 << total - 1), total)} : v[{total - 1}:0];
  endfunction"""


def rounding(width: int) -> str:
    """A function that shifts to the right to the nearest, ties upwards."""
    return f"""  function automatic signed [{width - 1}:0] shr(input signed [{width - 1}:0] v, input integer k);
    shr = (v + ({width}'sd1 <<< (k - 1))) >>> k;
  endfunction"""


def shifted(text: str, shift: int) -> str:
    """An expression shifted to the right, rounded; to the left where negative."""
    return text if shift == 0 else f"shr({text}, {shift})" if shift > 0 else f"(({text}) <<< {-shift})"


def scaled(text: str, factor: int, shift: int) -> str:
    """An expression times a factor, shifted."""
    if factor == 0:
        return "2'sd0"
    product = {1: text, -1: f"-({text})"}.get(factor, f"{literal(factor)} * ({text})")
    return shifted(product, shift)


def lookup(name: str, table: Table, bits: Bits, width: int) -> str:
    """A function that looks a state up."""
    total, last = bits[0], (1 << table.log) - 1
    middle = 1 << table.log - 1
    place = f"(u >>> {table.shift})" if table.shift >= 0 else f"(u <<< {-table.shift})"
    entries = [f"{i}: {name} = {total}'sh{word(v, total)};" for i, v in enumerate(table.entries)]
    rows = "\n".join("        " + " ".join(entries[i : i + 4]) for i in range(0, len(entries), 4))
    return f"""  {comment(f"{table.function}: {1 << table.log} entries of {total} bits")}
  function automatic signed [{total - 1}:0] {name}(input signed [{width - 1}:0] u);
    reg signed [{width - 1}:0] place;
    begin
      place = {place} + {literal(middle)};
      if (place < 0) place = 0;
      if (place > {literal(last)}) place = {literal(last)};
      case (place[{table.log - 1}:0])
{rows}
      endcase
    end
  endfunction"""


def functions(path: Datapath, width: int, names: Mapping[str, str]) -> Iterator[str]:
    """The functions of a datapath; `names` are those of the lookups of map populations."""
    sizes = {total for total, _ in [*path.formats.states.values(), *(path.formats.params[p] for p in path.rules)]}
    sizes |= {total for total, _ in path.formats.ports.values()}
    sizes |= {path.formats.states[n][0] + path.guard(n) for n in path.integrators}
    yield from (saturation(total, width) for total in sorted(sizes))
    yield rounding(width)
    done: set[str] = set()
    for name, table in path.tables.items():
        if names[name] not in done:
            done.add(names[name])
            yield lookup(names[name], table, path.formats.states[name], width)


def lookups(path: Datapath, identifiers: Identifiers) -> dict[str, str]:
    """The name of the lookup function of each map population, one for equal tables."""
    found: dict[tuple[Table, Bits], str] = {}
    for name, table in path.tables.items():
        found.setdefault((table, path.formats.states[name]), identifiers("f", name))
    return {name: found[table, path.formats.states[name]] for name, table in path.tables.items()}


def header(title: str, lines: Iterable[str]) -> str:
    """A comment at the top of a file."""
    return "\n".join(comment(line) if line else "//" for line in [title, "Generated by pccompile.", "", *lines])
