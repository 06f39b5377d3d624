"""Tables: aligned text anywhere, rich on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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


class Shown:
    """What is shown as its page: as text, by rich on a terminal, and as HTML in a notebook."""

    @property
    def page(self) -> Page:
        """The findings for a reader."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.page)

    def __rich__(self) -> Page:
        return self.page

    def _repr_html_(self) -> str:
        return self.page._repr_html_()


class Report(Shown):
    """A dataclass of findings."""

    def as_dict(self) -> dict[str, Any]:
        """All findings."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def json(self, indent: int | None = None) -> str:
        """All findings as JSON; what is not finite is null."""
        return as_json(self.as_dict(), indent)


def show(what: Any, file: TextIO | None = None) -> None:
    """Print a table, a page or a text: with rich on a terminal, as plain text elsewhere."""
    file = file or sys.stdout
    if file.isatty() and hasattr(what, "__rich__"):
        from rich.console import Console

        Console(file=file, highlight=False).print(what)
    else:
        print(what, file=file)


def finite(value: Any) -> Any:
    """`value`, made of dictionaries, lists and plain values, as JSON takes it: nan and infinities are None."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, as `finite` has it."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


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
