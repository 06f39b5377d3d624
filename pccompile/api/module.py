"""A compiled model with all that can be asked of it: to learn a batch, to infer one, and reports about both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pccompile.explorer import Exploration, explore
from pccompile.report import latex
from pccompile.report.analyse import Analysis, analyse
from pccompile.report.cost import CostReport, report_cost
from pccompile.report.drawing import dot, mermaid
from pccompile.report.explain import explain
from pccompile.report.locality import LocalityReport, report_locality, stepped
from pccompile.report.summary import summary
from pccompile.report.tables import Page
from pccompile.report.trace import Trace, infer
from pccompile.runtime.derivative_guards import opaque
from pccompile.runtime.module import WRAPPED, CompiledModule
from pccompile.runtime.sample_gradients import sample_gradients
from pccompile.runtime.saving import save_generated
from pccompile.runtime.settle import Settled, settle
from pccompile.runtime.train_step import train_step


class PCModule(CompiledModule):
    """`model` with predictive-coding gradients: the same Parameter objects, the same state_dict.

    A call in a new form (another shape where dimensions are fixed, another dtype, train instead of eval mode) compiles
    the model again; the dimensions that the first compilation left free, the batch as a rule, do not.
    """

    @opaque
    def train_step(
        self,
        args: tuple[Any, ...] | Tensor,
        target: Any,
        optimizer: torch.optim.Optimizer,
        kwargs: Mapping[str, Any] | None = None,
        **roles: Any,
    ) -> Tensor:
        """Infer and learn on one batch with any torch optimizer; returns the loss before, detached.

        For algorithms that move parameters inside inference (incremental) the optimizer steps once an inference step.
        For the others this is `loss(...).backward()` and one `optimizer.step()`. roles: free, clamped and mask, as for
        `settle`: the parameters learn at the values that are inferred.
        """
        WRAPPED.refuse_around(self, "train_step")
        args = (args,) if isinstance(args, Tensor) else args
        return train_step(self, args, kwargs or {}, target, optimizer, **roles)

    def sample_gradients(
        self,
        args: tuple[Any, ...] | Tensor,
        target: Any,
        kwargs: Mapping[str, Any] | None = None,
        chunk: int | None = None,
    ) -> dict[str, Tensor]:
        """The gradients of each sample, [samples, *parameter], in one run: see `runtime.sample_gradients`."""
        return sample_gradients(self, args, target, kwargs, chunk)

    def infer(self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any) -> Trace:
        """Values, errors and energies at each inference step: `report.trace.infer` says what `settings` may be."""
        return infer(self, args, kwargs, **settings)

    def settle(
        self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> Settled:
        """Where inference ends: `runtime.settle` says what can be inferred and what can be given."""
        return settle(self, args, kwargs, **settings)

    def analyse(
        self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> Analysis:
        """Eigenvalues that bound the rates of inference on one batch: `report.analyse` says what `settings` may be."""
        return analyse(self, args, kwargs, **settings)

    def locality(self) -> LocalityReport:
        """How far news travels in a step, what is kept, and which weights messages read: is the algorithm local?"""
        program, notes = stepped(self.compiled, self.options)
        return report_locality(program, notes)

    def cost(self, args: tuple[Any, ...] | Tensor | None = None, kwargs: Mapping[str, Any] | None = None) -> CostReport:
        """What one step costs against backpropagation's: products, sequential depth, messages, memory.

        args, kwargs: a batch, whose lengths count; by default those of the example. Raises CompileError.
        """
        if args is None and kwargs is None:
            compiled = self.compiled
            return report_cost(compiled, {str(k): n for k, n in compiled.imported.typer.example().items()})
        args = (args,) if isinstance(args, Tensor) else tuple(args or ())
        runtime = self.prepare(args, kwargs)
        inputs = runtime.interface.bind(args, dict(kwargs or {}))
        assert runtime.compiled is not None
        dims = runtime.compiled.pc.graph.dims.items()
        lengths = {name: int(inputs[s.tensor].shape[s.axis]) for name, s in dims if s.tensor in inputs}
        return report_cost(runtime.compiled, lengths)

    def explain(self, vertex: str | None = None) -> Page:
        """Where a vertex comes from, its equations, local rules and generated code; without a name, all vertices."""
        return explain(self, vertex)

    def explore(
        self, args: tuple[Any, ...] | Tensor, kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> Exploration:
        """The model and what inference does with a batch, as a page: `explorer.explore` says what `settings` are."""
        return explore(self, args, kwargs, **settings)

    def latex(self) -> str:
        """All equations in LaTeX, one `align*` environment, ready to paste."""
        return latex.document(self)

    def dot(self) -> str:
        """The graph of vertices for Graphviz."""
        return dot(self.graph)

    def mermaid(self) -> str:
        """The graph of vertices for Mermaid, as READMEs draw it."""
        return mermaid(self.graph)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self) -> Page:
        """Algorithm, size, rules by family, predicted gradient error, and what to look out for."""
        return summary(self)

    def save(self, folder: str | Path, name: str = "model") -> tuple[Path, Path]:
        """Write `name_pc.py` and `name_pc.safetensors` into `folder`; return their paths.

        Raises CompileError rather than overwrite a file that pccompile did not generate.
        """
        return save_generated(self.source, self.state(), Path(folder), name)
