"""Pictures by matplotlib, which is an extra."""

from __future__ import annotations

import io
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
