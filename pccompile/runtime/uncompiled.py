"""What is said where a model runs as it is, because it cannot be compiled."""

from __future__ import annotations

import warnings

from torch import nn

from pccompile.diagnostics import CompileError


class Refusals:
    """Refusals of a model that ran nevertheless, each of which is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, model: nn.Module, refusal: CompileError, how: str = "under torch.no_grad") -> None:
        """Warn that `model` itself runs, how, and why."""
        reason = "; ".join(p.what for p in refusal.problems)
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(f"{type(model).__name__} runs uncompiled {how}: {reason}", stacklevel=4)
