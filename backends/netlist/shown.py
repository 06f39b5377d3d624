"""A few lines about a circuit and its costs, for notebooks and the prompt; `pccompile.report` has all of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from pccompile.backends.netlist.format import Spec
from pccompile.diagnostics import printable

MOST = 20
"""So many populations a notebook shows."""


def title(spec: Spec) -> str:
    """A circuit in one line."""
    units = sum(math.prod(p.shape) for p in spec.populations.values())
    return (
        f"Netlist({printable(spec.name)}: {units:,} units in {len(spec.populations)} populations, "
        f"{len(spec.projections)} projections, {len(spec.plasticity)} rules of plasticity)"
    )


def populations_html(spec: Spec) -> str:
    """A table of the first populations of a circuit."""
    rows = [
        (name, "×".join(map(str, p.shape)) or "1", p.unit, p.role) for name, p in list(spec.populations.items())[:MOST]
    ]
    more = len(spec.populations) - len(rows)
    rest = f"<p>… and {more:,} more populations</p>" if more else ""
    return f"<p>{escape(title(spec))}</p>{table(('population', 'shape', 'unit', 'role'), rows)}{rest}"


def costs_html(costs: Mapping[str, object]) -> str:
    """A table of names and numbers."""
    return table(("", ""), [(k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in costs.items()])


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text as HTML, in which names of a model are text and nothing else."""

    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(printable(c))}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', headings)}{''.join(line('td', row) for row in rows)}</table>"
