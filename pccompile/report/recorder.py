"""A recorder of training: what inference does every so many steps, as lines of JSON or wherever a sink puts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.report.analyse import analyse
from pccompile.report.regime import has_regime
from pccompile.report.tables import as_json
from pccompile.report.trace import infer
from pccompile.runtime.module import CompiledModule


class Sink(Protocol):
    """What takes numbers by name: a JSONL file, or a board of another package behind one function."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the numbers of a training step."""


class JsonLines:
    """A file with one line for each step, {"step": 100, "loss": 0.31, ...}; what is not finite is null."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(as_json({"step": step, **values}) + "\n")


class Recorder:
    """Measures a compiled model every `every` training steps, and logs numbers by name.

    loss, free_energy        where inference ends; energy/VERTEX, what each vertex costs there
    cosine/PARAMETER         of its gradient to that of backpropagation
    q, lambda_max            rate · steps · λ_max, and λ_max of the operator that inference iterates

    The last two rows are those of algorithms that take steps. to: a path of a JSONL file, which `pccompile watch`
    draws, or an object with `log(step, values)`.
    """

    def __init__(self, to: str | Path | Sink, every: int = 100) -> None:
        if every < 1:
            raise CompileError(f"every is {every}", hint="measure every 1, 10, 100 … steps")
        self.sink: Sink = JsonLines(to) if isinstance(to, str | Path) else to
        self.every = every

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of your own beside those that are measured."""
        self.sink.log(step, values)

    def measure(
        self,
        pc: CompiledModule,
        step: int,
        args: tuple[Any, ...] | Tensor,
        kwargs: Mapping[str, Any] | None = None,
        *,
        target: Any,
    ) -> bool:
        """Measure and log a batch where it is the turn of `step`; says whether it was.

        Parameters, their gradients, buffers and the random stream stay as they are. Raises CompileError.
        """
        if step % self.every:
            return False
        self.log(step, measured(pc, args, kwargs, target))
        return True


def measured(
    pc: CompiledModule, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None, target: Any
) -> dict[str, float]:
    """The numbers of one batch, by name."""
    found: dict[str, float] = {}
    steps = has_regime(pc.options.algorithm)
    if steps or not pc.compiled.source.moving:  # a single wave of moving values has no steps to show
        trace = infer(pc, args, kwargs, target=target)
        found |= {"loss": float(trace.loss[-1]), "free_energy": float(trace.free_energy[-1])}
        found |= {f"energy/{name}": float(e[-1]) for name, e in trace.energy.items()}
    if steps:
        regime = analyse(pc, args, kwargs, target=target, kinds=("regime",)).regime
        assert regime is not None
        found |= {f"cosine/{p.name}": p.cosine_to_backprop for p in regime.parameters}
        scale = regime.rate * regime.steps
        found |= {"q": regime.q, "lambda_max": regime.q / scale if scale else math.nan}
    return found
