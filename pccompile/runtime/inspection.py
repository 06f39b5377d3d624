"""What can be asked of a compiled model besides running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from pccompile.algorithms import ALGORITHMS
from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError
from pccompile.ir import Program
from pccompile.pipeline import Compiled, Options, schedule
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import SQUARED_ERROR
from pccompile.runtime.model_state import Tables
from pccompile.runtime.shared_tables import SharedTables

if TYPE_CHECKING:
    from pccompile.report.analyse import Analysis
    from pccompile.report.cost import CostReport
    from pccompile.report.locality import LocalityReport
    from pccompile.report.tables import Page
    from pccompile.report.trace import Trace
    from pccompile.runtime.module import PCModule
    from pccompile.runtime.settle import Settled


RELAXED = "these are the steps; the compiled program evaluates what they end in, which gives the same gradients"


def stepped(compiled: Compiled, options: Options) -> tuple[Program, tuple[str, ...]]:
    """The program of an algorithm step by step, and a line where the compiled one is another."""
    if "lowering" not in {f.name for f in fields(ALGORITHMS[options.algorithm].settings)}:
        return compiled.program, ()
    relaxed = schedule(compiled.pc, replace(options, settings={**options.settings, "lowering": "relax"}))
    return relaxed, () if relaxed.infer == compiled.program.infer else (RELAXED,)


class Inspection(SharedTables):
    """The program that a module compiled or used last: its stages, its file, and reports about it."""

    _last: Runtime | None
    options: Options
    criterion: Any

    def tables(self, runtime: Runtime) -> Tables:
        """The model's parameters and buffers as the generated functions take them."""
        raise NotImplementedError

    @property
    def compiled(self) -> Compiled:
        """All stages of the program that was compiled or used last."""
        if self._last is None or self._last.compiled is None:
            raise CompileError(
                "nothing has been compiled yet", hint="call the model once, or compile it with example arguments"
            )
        return self._last.compiled

    @property
    def checked(self) -> Checked | None:
        """What was compared with eager torch when that program was compiled; None without the check."""
        return None if self._last is None else self._last.checked

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about that program: what was not compared, and which loss inference takes."""
        if self._last is None:
            return ()
        squared = (SQUARED_ERROR,) if self._last.source.moving and self.criterion is None else ()
        return (
            *squared,
            *map(str, self._last.options.choices),
            *self._last.notes,
            *(self._last.checked.notes if self._last.checked else ()),
        )

    @property
    def source(self) -> str:
        """The generated file."""
        return self.compiled.source.text

    @property
    def graph(self) -> Any:
        """The predictive-coding graph: vertices with their predictions, errors and messages."""
        return self.compiled.pc

    def infer(self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any) -> Trace:
        """Values, errors and energies at each inference step: `report.trace.infer` says what `settings` may be."""
        from pccompile.report.trace import infer

        return infer(cast("PCModule", self), args, kwargs, **settings)

    def settle(
        self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> Settled:
        """Where inference ends: `runtime.settle` says what can be inferred and what can be given."""
        from pccompile.runtime.settle import settle

        return settle(cast("PCModule", self), args, kwargs, **settings)

    def analyse(
        self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> Analysis:
        """Eigenvalues that bound the rates of inference on one batch: `report.analyse` says what `settings` may be."""
        from pccompile.report.analyse import analyse

        return analyse(cast("PCModule", self), args, kwargs, **settings)

    def locality(self) -> LocalityReport:
        """How far news travels in a step, what is kept, and which weights messages read: is the algorithm local?"""
        from pccompile.report.locality import report_locality

        program, notes = stepped(self.compiled, self.options)
        return report_locality(program, notes)

    def cost(self, args: tuple[Any, ...] | Tensor | None = None, kwargs: Mapping[str, Any] | None = None) -> CostReport:
        """What one step costs against backpropagation's: products, sequential depth, messages, memory.

        args, kwargs: a batch, whose lengths count; by default those of the example. Raises CompileError.
        """
        from pccompile.report.cost import report_cost

        if args is None and kwargs is None:
            compiled = self.compiled
            return report_cost(compiled, {str(k): n for k, n in compiled.imported.typer.example().items()})
        args = (args,) if isinstance(args, Tensor) else tuple(args or ())
        runtime = cast("PCModule", self).prepare(args, kwargs)
        inputs = runtime.interface.bind(args, dict(kwargs or {}))
        assert runtime.compiled is not None
        dims = runtime.compiled.pc.graph.dims.items()
        lengths = {name: int(inputs[s.tensor].shape[s.axis]) for name, s in dims if s.tensor in inputs}
        return report_cost(runtime.compiled, lengths)

    def explain(self, vertex: str | None = None) -> Page:
        """Where a vertex comes from, its equations, local rules and generated code; without a name, all vertices."""
        from pccompile.report.explain import explain

        return explain(cast("PCModule", self), vertex)

    def summary(self) -> Page:
        """Algorithm, size, rules by family, predicted gradient error, and what to look out for."""
        from pccompile.report.summary import summary

        return summary(cast("PCModule", self))

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names that the generated file uses, ties written once."""
        assert self._last is not None
        params, buffers = self.tables(self._last)
        return {**{k: v.detach() for k, v in params.items()}, **buffers}

    def save(self, folder: str | Path, name: str = "model") -> tuple[Path, Path]:
        """Write `name_pc.py` and `name_pc.safetensors` into `folder`; return their paths.

        Raises CompileError rather than overwrite a file that pccompile did not generate.
        """
        from pccompile.runtime.saving import save_generated

        return save_generated(self.source, self.state(), Path(folder), name)
