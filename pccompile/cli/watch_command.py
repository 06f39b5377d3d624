"""`pccompile watch log.jsonl`: what a recorder of training has written, as a table of curves or as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pccompile.cli.grammar import Grammar
from pccompile.diagnostics import EXIT_DONE, CompileError, printable
from pccompile.report.figures import figure, save
from pccompile.report.run_comparison import compare_runs
from pccompile.report.tables import Page, Table, as_json, number, show

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""So many points a curve in a table has at most."""
LINES = 10
"""So many curves a panel of a picture has at most."""
Curves = dict[str, list[tuple[int, float]]]


def watch_parser() -> Grammar:
    """The grammar of this command."""
    p = Grammar(prog="pccompile watch", description="Shows what a recorder of training has written.")
    p.add_argument("log", nargs="+", help="the recorder's JSONL file; several with --against, one for each run")
    p.add_argument(
        "--against", nargs="+", default=[], metavar="LOG", help="compare with these, run by run: a paired test"
    )
    p.add_argument("-o", "--output", metavar="PICTURE", help="draw it with matplotlib instead: curves.png, .svg, .pdf")
    p.add_argument("--json", action="store_true", help="the curves as JSON")
    return p


def watch(argv: Sequence[str]) -> int:
    """Show a log; what is returned is the exit code. Raises CompileError for a file that is none, and UsageError."""
    options = watch_parser().parse_args(argv)
    if options.against:
        found = compare_runs(*([read(Path(log)) for log in side] for side in (options.log, options.against)))
        show(as_json(found.as_dict(), indent=2) if options.json else found)
        return EXIT_DONE
    if len(options.log) > 1:
        raise CompileError("several logs are compared with others", hint="--against LOG …")
    curves = read(Path(options.log[0]))
    if options.output:
        print(printable(str(draw(curves, Path(options.output)))))
    elif options.json:
        print(as_json(curves, indent=2))
    else:
        show(page(curves))
    return EXIT_DONE


def read(path: Path) -> Curves:
    """The numbers of each name with their steps, in the order of the file; null is not a number."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is no text"
        raise CompileError(f"cannot read {printable(str(path))}: {reason}") from None
    curves: Curves = {}
    for i, line in enumerate(lines, 1):
        values = _line(line, path, i)
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, []).append((step, math.nan if value is None else float(value)))
    if not curves:
        raise CompileError(f"{printable(str(path))} has no numbers yet", hint="pccompile.Recorder writes them")
    return curves


def _line(line: str, path: Path, at: int) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    fine = isinstance(values, dict) and isinstance(values.get("step"), int)
    if not fine or any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in values.values()):
        what = f"line {at} of {printable(str(path))} is no step of a recorder"
        raise CompileError(what, hint='one line is {"step": 100, "loss": 0.31}')
    return dict(values)


def page(curves: Curves) -> Page:
    """A row for each name: first and last number, and the curve between them."""
    steps = [s for points in curves.values() for s, _ in points]
    rows = tuple(
        (name, number(points[0][1], 3), number(points[-1][1], 3), bars([v for _, v in points]))
        for name, points in curves.items()
    )
    title = f"steps {min(steps):,} to {max(steps):,}"
    return Page((title, Table(("", ">first", ">last", "curve"), rows)))


def bars(values: Sequence[float]) -> str:
    """A curve of at most WIDTH characters from its least value to its largest; a space where it is not a number."""
    kept = [values[i * len(values) // min(len(values), WIDTH)] for i in range(min(len(values), WIDTH))]
    finite = [v for v in kept if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] if math.isfinite(v) else " " for v in kept)


def draw(curves: Curves, path: Path) -> Path:
    """A panel for each kind of number, what stands before a slash. Raises CompileError without matplotlib."""
    kinds: dict[str, list[str]] = {}
    for name in curves:
        kinds.setdefault(name.partition("/")[0], []).append(name)
    picture = figure(7, 2.2 * len(kinds))
    for axes, (kind, names) in zip(picture.subplots(len(kinds), squeeze=False)[:, 0], kinds.items(), strict=True):
        for name in names[:LINES]:
            label = printable(name.partition("/")[2] or name, 40).replace("$", r"\$")
            axes.plot(*zip(*curves[name], strict=True), linewidth=1, marker=".", label=label)
        axes.set_ylabel(kind)
        if len(names) > 1:
            axes.legend(fontsize="x-small", ncols=2)
    axes.set_xlabel("training step")
    save(picture, path)
    return path
