"""What a compiled module has besides its model's tensors: feedback weights, and what lasts between calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.algorithms import ALGORITHMS
from pccompile.passes.feedback import LEAVES
from pccompile.pipeline import Compiled
from pccompile.runtime.feedback_weights import FeedbackWeights, JoinedModules
from pccompile.runtime.inspection import Inspection
from pccompile.runtime.lasting_state import LastingState
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.model_state import Tables


class OwnTensors(Inspection):
    """Shows them beside the model's submodules, and gives them to programs."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_feedback"], self.__dict__["_lasting"] = FeedbackWeights(), LastingState()

    def _share(self, model: nn.Module) -> None:
        super()._share(model)
        self._join()

    def _join(self) -> None:
        """Put what there is beside the model's submodules."""
        brings = self.options.feedback in LEAVES or ALGORITHMS[self.options.algorithm].mirrors
        own = {self.options.home: self.__dict__["_feedback"]} if brings else {}
        if self.__dict__["_lasting"]._modules:
            own[self.options.kept] = self.__dict__["_lasting"]
        if own:
            self.__dict__["_modules"] = JoinedModules(self.__dict__["model"]._modules, own)

    def _anew(self) -> dict[str, Any]:
        return {name: copy.deepcopy(self.__dict__[name]) for name in ("_feedback", "_lasting")}

    def _grow(self, compiled: Compiled, tables: Tables, inputs: Mapping[str, Tensor]) -> None:
        """Make what a program reads and is not there yet. Raises CompileError."""
        if compiled.pc.feedback:
            self.__dict__["_feedback"].grow(compiled, tables)
        if compiled.program.kept:
            self.__dict__["_lasting"].grow(compiled, _device(tables, inputs))
            self._join()

    def _with_own(self, runtime: Runtime, tables: Tables, inputs: Mapping[str, Tensor] | None = None) -> Tables:
        """`tables` with what a program reads besides the model's own."""
        compiled = runtime.compiled
        if compiled is not None and compiled.pc.feedback:
            tables = self.__dict__["_feedback"].tables(compiled, tables, runtime.mirrored)
        if compiled is not None and compiled.program.kept:
            tables = self.__dict__["_lasting"].tables(compiled, tables, _device(tables, inputs or {}))
        return tables

    def keep(self, runtime: Runtime, found: Mapping[str, Tensor]) -> None:
        """Let what a program has found last between calls, by its path."""
        if found:
            self.__dict__["_lasting"].keep(runtime.compiled, found)

    @contextmanager
    def lasting_still(self) -> Iterator[None]:
        """Within: calls leave no trace in what lasts between them."""
        state: LastingState = self.__dict__["_lasting"]
        before = {name: t.clone() for name, t in state.named_buffers()}
        yield
        for name, t in state.named_buffers():
            if name in before:
                t.copy_(before[name])


def _device(tables: Tables, inputs: Mapping[str, Tensor]) -> torch.device:
    """Where a program runs."""
    return next((t.device for table in (*tables, inputs) for t in table.values()), torch.device("cpu"))
