"""A picture of a placement: tiles of a chip with their cores, coloured by use, and the traffic between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import numpy as np

from pccompile.backends.netlist.chip import Figure
from pccompile.backends.netlist.placement import Placement
from pccompile.diagnostics import listing

PITCH, TILE, LINES, LEGEND = 100, 68, 400, 360
"""The distance of tiles, the side of one, how many lines of traffic are drawn, and how wide the legend is."""


def floorplan(p: Placement) -> str:
    """The picture as SVG: cores where they lie, dark where full, and lines whose width tells the messages a tick."""
    columns, rows = (min(int(n) + 2, g) for n, g in zip(p.tiles.max(0), p.chip.grid.value, strict=True))
    width, height = max(columns * PITCH, LEGEND), rows * PITCH + 40
    return (
        f'<svg width="{width}" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" '
        'font-family="system-ui,sans-serif" role="img" aria-label="cores of the chip">\n'
        + "\n".join([*_tiles(columns, rows), *_lines(p), *_cores(p), *_legend(rows)])
        + "\n</svg>"
    )


def fullness(p: Placement) -> np.ndarray:
    """The share of the limit that is nearest, `[cores]`."""
    shares = [np.zeros(len(p.tiles))]
    for name, values in p.use.limits():
        limit: Figure | None = getattr(p.chip, name)
        if limit is not None:
            shares.append(values / limit.value)
    found: np.ndarray = np.max(shares, axis=0)
    return found


def _tiles(columns: int, rows: int) -> Iterator[str]:
    gap = (PITCH - TILE) / 2
    for y in range(rows):
        for x in range(columns):
            yield (f'<rect x="{x * PITCH + gap:g}" y="{y * PITCH + gap:g}" width="{TILE}" height="{TILE}" rx="6" '
                   'fill="#f4f4f2" stroke="#ccc"/>')  # fmt: skip


def _lines(p: Placement) -> Iterator[str]:
    """Messages between tiles, both ways together."""
    tiles, index = np.unique(p.tiles, axis=0, return_inverse=True)
    index = index.reshape(-1)
    both = np.zeros((len(tiles), len(tiles)), dtype=np.int64)
    np.add.at(both, (index[:, None], index[None, :]), p.use.traffic)
    both = np.triu(both + both.T, 1)
    strongest = np.argsort(-both, axis=None, kind="stable")[:LINES]
    most = max(int(both.max(initial=0)), 1)
    for a, b in zip(*np.unravel_index(strongest, both.shape), strict=True):
        n = int(both[a, b])
        if not n:
            return
        (x1, y1), (x2, y2) = ((int(v) * PITCH + PITCH / 2 for v in tiles[i]) for i in (a, b))
        length = math.hypot(x2 - x1, y2 - y1)
        bow = 0 if length <= PITCH else 0.12 * length
        mx, my = (x1 + x2) / 2 - bow * (y2 - y1) / length, (y1 + y2) / 2 + bow * (x2 - x1) / length
        yield (f'<path d="M{x1:g} {y1:g}Q{mx:.1f} {my:.1f} {x2:g} {y2:g}" fill="none" stroke="#c2410c" '
               f'stroke-opacity="{0.25 + 0.5 * n / most:.2f}" stroke-width="{1 + 11 * math.sqrt(n / most):.1f}">'
               f"<title>{n:,} messages a tick</title></path>")  # fmt: skip


def _cores(p: Placement) -> Iterator[str]:
    full, side = fullness(p), max(1, math.ceil(math.sqrt(p.chip.cores_per_tile.whole)))
    here: dict[int, list[str]] = {}
    for name, cores in p.cores.items():
        for core, n in zip(*np.unique(cores, return_counts=True), strict=True):
            here.setdefault(int(core), []).append(f"{name} ({n:,})")
    seen: dict[tuple[int, int], int] = {}
    size, gap = (TILE - 8) / side, (PITCH - TILE) / 2 + 4
    for core, (x, y) in enumerate(p.tiles.tolist()):
        slot = seen.get((x, y), 0)
        seen[x, y] = slot + 1
        left, top = x * PITCH + gap + slot % side * size, y * PITCH + gap + slot // side * size
        share = float(full[core])
        ink = "#fff" if share > 0.5 else "#222"
        text = f"core {core}, {share:.0%} of its nearest limit: {listing(here.get(core, []), 12)}"
        yield (f'<g><title>{escape(text)}</title><rect x="{left + 1:g}" y="{top + 1:g}" width="{size - 2:g}" '
               f'height="{size - 2:g}" rx="3" fill="{_shade(share)}" stroke="#1e3a5f" stroke-width=".6"/>'
               f'<text x="{left + size / 2:g}" y="{top + size / 2 + size / 9:g}" font-size="{size / 3.2:.1f}" '
               f'text-anchor="middle" fill="{ink}">{100 * share:.0f}</text></g>')  # fmt: skip


def _shade(share: float) -> str:
    """From near white to dark blue."""
    low, high = (232, 240, 248), (20, 66, 122)
    mixed = (round(a + (b - a) * min(share, 1.0)) for a, b in zip(low, high, strict=True))
    return f"rgb({','.join(map(str, mixed))})"


def _legend(rows: int) -> Iterator[str]:
    texts = ("number: percent of the limit that a core is nearest to", "line: messages between tiles")
    for i, text in enumerate(texts):
        y = rows * PITCH + 16 + 16 * i
        yield f'<text x="{(PITCH - TILE) / 2:g}" y="{y}" font-size="11" fill="#555">{text}</text>'
