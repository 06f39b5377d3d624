"""Tables: aligned text anywhere, rich on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TextIO

from pccompile.diagnostics import printable


@dataclass(frozen=True)
class Table:
    """Rows of text under headings. Columns whose heading starts with > are right-aligned."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """The headings as shown."""
        return tuple(h.removeprefix(">") for h in self.headings)

    def __str__(self) -> str:
        rows = [self.titles, *(tuple(printable(c) for c in row) for row in self.rows)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.headings))]
        right = [h.startswith(">") for h in self.headings]
        lines = (
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        side = ["right" if h.startswith(">") else "left" for h in self.headings]

        def row(tag: str, cells: Sequence[str]) -> str:
            inside = (
                f'<{tag} style="text-align:{s}">{escape(printable(c))}</{tag}>'
                for c, s in zip(cells, side, strict=True)
            )
            return f"<tr>{''.join(inside)}</tr>"

        rows = "".join(row("td", cells) for cells in self.rows)
        return f"<table><thead>{row('th', self.titles)}</thead><tbody>{rows}</tbody></table>"

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in self.headings:
            table.add_column(
                Text(heading.removeprefix(">")), justify="right" if heading.startswith(">") else "left", overflow="fold"
            )
        for row in self.rows:
            table.add_row(*(Text(printable(c)) for c in row))
        return table


@dataclass(frozen=True)
class Page:
    """Lines and tables, one below the other."""

    parts: tuple[str | Table, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts))

    def _repr_html_(self) -> str:
        parts = (f"<pre>{escape(p)}</pre>" if isinstance(p, str) else p._repr_html_() for p in self._joined())
        return "".join(parts)

    def _joined(self) -> list[str | Table]:
        """The parts, lines that follow each other as one."""
        found: list[str | Table] = []
        for p in self.parts:
            if isinstance(p, str) and found and isinstance(found[-1], str):
                found[-1] += f"\n{p}"
            else:
                found.append(p)
        return found

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(*(Text(p) if isinstance(p, str) else p for p in self.parts))


def show(what: Any, file: TextIO | None = None) -> None:
    """Print a table, a page or a text: with rich on a terminal, as plain text elsewhere."""
    file = file or sys.stdout
    if file.isatty() and hasattr(what, "__rich__"):
        from rich.console import Console

        Console(file=file, highlight=False).print(what)
    else:
        print(what, file=file)


def as_json(value: Any, indent: int | None = None) -> str:
    """`value`, made of dictionaries, lists and plain values, as JSON; nan and infinities, which it lacks, are null."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(k): plain(v) for k, v in part.items()}
        if isinstance(part, list | tuple):
            return [plain(v) for v in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def number(value: float, digits: int = 2) -> str:
    """A small number as people read it: 0, 3.1e-07, –."""
    if math.isnan(value):
        return "–"
    return "0" if value == 0 else f"{value:.{digits}g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.{digits - 1}e}"


def count(n: int, what: str, many: str = "") -> str:
    """`1 vertex`, `2 vertices`."""
    return f"{n:,} {what if n == 1 else many or what + 's'}"


def shortened(names: Sequence[str], most: int = 6) -> str:
    """A list of names that fits a line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(n, 60) for n in names[:most]) + more
