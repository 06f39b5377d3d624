"""What a netlist costs and where it lies on a chip, as text and as a page of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from typing import Any

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


def resources_report(costs: Resources) -> Page:
    """The costs of a circuit in lines and tables, and those of its placement where it has one."""
    parts: list[str | Table] = [summary(costs), "", ticks(costs)]
    if costs.placement is not None:
        parts += ["", *map(_line, placed(costs.placement)), "", used(costs.placement)]
        parts += ["", energies(costs), *map(_line, caveats(costs))]
    return Page((*parts, "", *_first(populations(costs)), "", *_first(projections(costs))))


def resources_data(costs: Resources) -> dict[str, Any]:
    """The same numbers as JSON takes them."""
    found = asdict(replace(costs, placement=None))
    p = costs.placement
    found["ticks"] = [{"gradient_error": error, "ticks": n} for error, n in costs.ticks]
    found["placement"] = p and {
        "chip": p.chip.name,
        "cores": len(p.tiles),
        "messages": p.messages,
        "hops": p.hops,
        "broken_limits": p.check(),
        "not_native": p.foreign(),
    }
    return found


def _first(table: Table) -> tuple[Table | str, ...]:
    """The first rows of a long table, and how many more there are."""
    more = len(table.rows) - ROWS
    if more <= 0:
        return (table,)
    return Table(table.headings, table.rows[:ROWS]), f"… and {more:,} more; --report has all"


def _line(pair: tuple[str, str]) -> str:
    return f"{pair[0]:<12} {pair[1]}"


def summary(costs: Resources) -> Table:
    """Totals of the circuit."""

    def spread(s: Spread) -> str:
        return f"{s.mean:,.1f} on average, {s.largest:,} at most"

    settled = "–" if costs.settled is None else f"{number(costs.settled)} after {costs.settle} ticks"
    rows = (
        ("units", f"{costs.units:,}"),
        ("synapses", f"{costs.synapses:,}"),
        ("parameters", f"{costs.parameters:,}, of which {costs.learned:,} learn"),
        ("bits of parameters", f"{costs.weight_bits:,}"),
        ("bits of state", f"{costs.state_bits:,}"),
        ("fan-in", spread(costs.fan_in)),
        ("fan-out", spread(costs.fan_out)),
        ("messages a tick", f"{costs.messages:,}"),
        ("multiply-accumulates a tick", f"{costs.macs:,} with parameters, {costs.products:,} products of states"),
        ("changes a learning tick", f"{costs.updates:,}"),
        ("integrators on the longest way of an error", "–" if costs.depth is None else f"{costs.depth}"),
        ("relative error of a gradient, at most", settled),
    )
    return Table((costs.name, ">"), tuple((a, b) for a, b in rows))


def ticks(costs: Resources) -> Table:
    """The ticks that each gradient error takes, by the law of fixed prediction."""
    rows = tuple((f"{t:g}", "no law" if n is None else f"{n:,}") for t, n in costs.ticks)
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


def caveats(costs: Resources) -> Iterator[tuple[str, str]]:
    """What the energies leave out."""
    energies = [e for e in (costs.tick_energy, costs.learning_energy) if e is not None]
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


def energies(costs: Resources) -> Table:
    """Energy of a tick, of learning and of a presentation."""
    pairs = (("a tick", costs.tick_energy), ("learning, besides", costs.learning_energy),
             ("a presentation", costs.presentation_energy))  # fmt: skip
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


def populations(costs: Resources) -> Table:
    """One row a population."""
    rows = tuple(
        (p.name, p.role, p.unit, f"{p.units:,}", f"{p.state_bits:,}", f"{p.fan_in.largest:,}", f"{p.fan_out.largest:,}")
        for p in costs.populations
    )
    return Table(("population", "role", "unit", ">units", ">bits of state", ">fan-in", ">fan-out"), rows)


def projections(costs: Resources) -> Table:
    """One row a projection."""
    rows = tuple(
        (p.name, p.op, f"{p.synapses:,}", "learns" if p.learns else "fixed" if p.weighted else "")
        for p in costs.projections
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
    costs = net.resources(chip)
    assert costs.placement is not None
    p = costs.placement
    lines = "".join(f"<dt>{_text(a)}</dt><dd>{_text(b)}</dd>" for a, b in (*placed(p), *caveats(costs)))
    title = _text(f"{net.spec.name} on {p.chip.name}")
    tables = (summary(costs), ticks(costs), used(p), energies(costs))
    details = (("Populations", populations(costs)), ("Projections", projections(costs)), ("Figures", sources(p.chip)))
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
