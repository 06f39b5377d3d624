"""Pictures by matplotlib, which is an extra."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pccompile.diagnostics import CompileError, printable


def figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, in inches, which notebooks show. Raises CompileError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CompileError("matplotlib is not installed", hint='pip install "pccompile[demo]"') from None

    class Picture(Figure):  # a figure without pyplot has no canvas that a notebook would ask
        """A Figure that shows itself as PNG."""

        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            self.savefig(data, format="png")
            return data.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def save(picture: Any, path: str | Path | None) -> Any:
    """The picture, written to `path` where there is one, whose end is the format. Raises CompileError."""
    if path is not None:
        try:
            picture.savefig(path)
        except (OSError, ValueError) as e:
            raise CompileError(f"cannot draw {printable(str(path))}: {printable(str(e), 100)}") from None
    return picture


def bars(
    title: str,
    rows: Mapping[str, Sequence[float]],
    path: str | Path | None = None,
    labels: Sequence[str] = ("",),
    axis: str = "",
    scale: str = "linear",
) -> Any:
    """A group of bars for each row, a bar for each label; written as `save` does it.

    axis: what the numbers are. scale: of the axis, as matplotlib calls it. Raises CompileError without matplotlib.
    """
    picture = figure(7, 1.5 + (0.1 + 0.15 * len(labels)) * max(len(rows), 4))
    axes = picture.subplots()
    thickness = 0.8 / len(labels)
    for i, label in enumerate(labels):
        places = [row + (i - (len(labels) - 1) / 2) * thickness for row in range(len(rows))]
        axes.barh(places, [numbers[i] for numbers in rows.values()], thickness, label=label)
    axes.set_yticks(range(len(rows)), [printable(name, 40).replace("$", r"\$") for name in rows])
    axes.invert_yaxis()
    axes.set(xscale=scale, xlabel=axis)
    axes.set_title(title, fontsize="medium")
    if len(labels) > 1:
        axes.legend(fontsize="x-small")
    return save(picture, path)
