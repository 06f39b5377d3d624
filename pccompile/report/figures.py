"""Pictures by matplotlib, which is an extra."""

from __future__ import annotations

from typing import Any

from pccompile.diagnostics import CompileError


def figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, in inches. Raises CompileError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CompileError("matplotlib is not installed", hint='pip install "pccompile[demo]"') from None
    return Figure(figsize=(width, height), layout="constrained")
