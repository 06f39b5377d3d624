"""What a netlist costs and where it lies on a chip, as text and as a page of its own."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from pccompile.backends.netlist import Netlist
from pccompile.backends.netlist.chip import Chip, Figure
from pccompile.backends.netlist.placement import Placement
from pccompile.backends.netlist.resources import Energy, Resources, Spread
from pccompile.diagnostics import printable
from pccompile.files.writing import SEAL
from pccompile.report.floorplan import floorplan
from pccompile.report.tables import Page, Table, count, number, shortened

LIMITS = {
    "units": "units",
    "axons_in": "units heard",
    "axons_out": "edges to cores that hear it",
    "memory": "bits of synapses",
}
"""What a core has, and how it is called here."""

ROWS = 30


def resources_report(found: Resources) -> Page:
    """The costs of a circuit in lines and tables, and those of its placement where it has one."""
    parts: list[str | Table] = [summary(found), "", ticks(found)]
    if found.placement is not None:
        parts += ["", *map(_line, placed(found.placement)), "", used(found.placement)]
        parts += ["", energies(found), *map(_line, caveats(found))]
    return Page((*parts, "", *_first(populations(found)), "", *_first(projections(found))))


def _first(table: Table) -> tuple[Table | str, ...]:
    """The first rows of a long table, and how many more there are."""
    more = len(table.rows) - ROWS
    if more <= 0:
        return (table,)
    return Table(table.headings, table.rows[:ROWS]), f"… and {more:,} more; --report has all"


def _line(pair: tuple[str, str]) -> str:
    return f"{pair[0]:<12} {pair[1]}"


def summary(found: Resources) -> Table:
    """Totals of the circuit."""

    def spread(s: Spread) -> str:
        return f"{s.mean:,.1f} on average, {s.largest:,} at most"

    settled = "–" if found.settled is None else f"{number(found.settled)} after {found.settle} ticks"
    rows = (
        ("units", f"{found.units:,}"),
        ("synapses", f"{found.synapses:,}"),
        ("parameters", f"{found.parameters:,}, of which {found.learned:,} learn"),
        ("bits of parameters", f"{found.weight_bits:,}"),
        ("bits of state", f"{found.state_bits:,}"),
        ("fan-in", spread(found.fan_in)),
        ("fan-out", spread(found.fan_out)),
        ("messages a tick", f"{found.messages:,}"),
        ("multiply-accumulates a tick", f"{found.macs:,} with parameters, {found.products:,} products of states"),
        ("changes a learning tick", f"{found.updates:,}"),
        ("integrators on the longest way of an error", "–" if found.depth is None else f"{found.depth}"),
        ("relative error of a gradient, at most", settled),
    )
    return Table((found.name, ">"), tuple((a, b) for a, b in rows))


def ticks(found: Resources) -> Table:
    """The ticks that each gradient error takes, by the law of fixed prediction."""
    rows = tuple((f"{t:g}", "no law" if n is None else f"{n:,}") for t, n in found.ticks)
    return Table((">gradient error", ">ticks"), rows)


def placed(p: Placement) -> Iterator[tuple[str, str]]:
    """Chip, cores and traffic, and what a reader of the figures should know, as titles and texts."""
    chip, used = p.chip, p.use
    yield "chip", f"{chip.name}: {chip.about}" if chip.about else chip.name
    yield "cores", f"{len(p.tiles):,} of {chip.cores.whole:,}, on {count(len(np.unique(p.tiles, axis=0)), 'tile')}"
    between = used.traffic.sum() - np.trace(used.traffic)
    yield "traffic", f"{p.messages:,} messages a tick, {between:,} between cores, {p.hops:,} hops from tile to tile"
    broken = p.check()
    yield "limits", "all hold" if not broken else "; ".join(broken)
    for kind, names in p.foreign().items():
        yield "not native", f"{kind} units ({shortened(names, 3)}): {chip.name} does not run them as they are"
    if p.net.spec.plasticity and not chip.learns.value:
        yield "learning", f"{chip.name} changes no weights: {chip.learns.source}"
    if copies := p.copies():
        text = shortened([f"{name} on {n} cores" for name, n in copies.items()], 3)
        yield "copies", f"{text}; their changes have to be added up"


def caveats(found: Resources) -> Iterator[tuple[str, str]]:
    """What the energies leave out."""
    energies = [e for e in (found.tick_energy, found.learning_energy) if e is not None]
    if missing := dict.fromkeys(o for e in energies for o in e.missing):
        yield "left out", f"nothing is published for {', '.join(missing)}"
    if unsure := dict.fromkeys(o for e in energies for o in e.unsure):
        yield "unsure", f"the figures for {', '.join(unsure)} have weak sources"
    yield (
        "counted",
        "one operation a synapse, unit and message a tick, each carrying a number; power at rest is not in it",
    )


def used(p: Placement) -> Table:
    """How full cores are."""
    rows = []
    for name, values in p.use.limits():
        limit: Figure | None = getattr(p.chip, name)
        share = "no limit" if limit is None else f"{values.max(initial=0) / limit.value:.0%}"
        rows.append(
            (
                LIMITS[name],
                f"{values.mean():,.0f}",
                f"{values.max(initial=0):,}",
                "–" if limit is None else f"{limit.whole:,}",
                share,
            )
        )
    return Table(("of a core", ">mean", ">most", ">limit", ">most of limit"), tuple(rows))


def energies(found: Resources) -> Table:
    """Energy of a tick, of learning and of a presentation."""
    pairs = (("a tick", found.tick_energy), ("learning, besides", found.learning_energy),
             ("a presentation", found.presentation_energy))  # fmt: skip
    return Table(("energy", ">"), tuple((name, energy(e)) for name, e in pairs if e is not None))


def energy(e: Energy) -> str:
    """`5.02 to 7.55 µJ`."""
    if not e.high:
        return "–"
    scale, unit = next(
        (s, u) for s, u in ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1, "pJ")) if e.high >= s or s == 1
    )
    low, high = f"{e.low / scale:.3g}", f"{e.high / scale:.3g}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def populations(found: Resources) -> Table:
    """One row a population."""
    rows = tuple(
        (p.name, p.role, p.unit, f"{p.units:,}", f"{p.state_bits:,}", f"{p.fan_in.largest:,}", f"{p.fan_out.largest:,}")
        for p in found.populations
    )
    return Table(("population", "role", "unit", ">units", ">bits of state", ">fan-in", ">fan-out"), rows)


def projections(found: Resources) -> Table:
    """One row a projection."""
    rows = tuple(
        (p.name, p.op, f"{p.synapses:,}", "learns" if p.learns else "fixed" if p.weighted else "")
        for p in found.projections
    )
    return Table(("projection", "operator", ">synapses", "weights"), rows)


def sources(chip: Chip) -> Table:
    """Every figure of a chip's description with its source."""
    rows = []
    for name, figure in chip.figures():
        value = getattr(figure, "value", "")
        high = getattr(figure, "high", None)
        text = (
            ", ".join(map(str, value))
            if isinstance(value, tuple)
            else f"{value:,g}"
            if isinstance(figure, Figure)
            else str(value).lower()
        )
        text += f" to {high:,g}" if high is not None else ""
        note = "; ".join(filter(None, (figure.source, figure.note)))
        rows.append((name, text, "unsure" if figure.unsure else "", note))
    return Table((f"{chip.name}", ">value", "", "source"), tuple(rows))


def resources_page(net: Netlist, chip: str | Path | Chip) -> str:
    """One HTML page, complete in itself: a picture of the placement, and all tables. Raises CompileError."""
    found = net.resources(chip)
    assert found.placement is not None
    p = found.placement
    lines = "".join(f"<dt>{_text(a)}</dt><dd>{_text(b)}</dd>" for a, b in (*placed(p), *caveats(found)))
    title = _text(f"{net.spec.name} on {p.chip.name}")
    tables = (summary(found), ticks(found), used(p), energies(found))
    details = (("Populations", populations(found)), ("Projections", projections(found)), ("Figures", sources(p.chip)))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{SEAL}">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n<dl>{lines}</dl>\n{floorplan(p)}\n"
        f'<div class="side">{"".join(map(_html, tables))}</div>\n'
        + "".join(f"<h2>{name}</h2>\n{_html(table)}\n" for name, table in details)
        + "</html>\n"
    )


STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}"
    "h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
    ".r{text-align:right;font-variant-numeric:tabular-nums}"
    ".side{display:flex;flex-wrap:wrap;align-items:flex-start;gap:0 3em}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1.2em}dt{color:#666}dd{margin:0}"
    "svg{max-width:100%;height:auto}"
)


def _html(table: Table) -> str:
    """A table as HTML."""
    right = [' class="r"' if h.startswith(">") else "" for h in table.headings]
    head = "".join(f"<th{r}>{_text(t)}</th>" for t, r in zip(table.titles, right, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{r}>{_text(c)}</td>" for c, r in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n"


def _text(text: str) -> str:
    return escape(printable(text, 2000))
