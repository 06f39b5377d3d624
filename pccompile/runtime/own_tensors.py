"""What a compiled module has besides its model's tensors: feedback weights, and what lasts between calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.algorithms import ALGORITHMS
from pccompile.diagnostics import CompileError
from pccompile.ir import Lasting, PCGraph, TensorType
from pccompile.passes.feedback import LEAVES
from pccompile.pipeline import Compiled
from pccompile.runtime.feedback_weights import FeedbackWeights, JoinedModules
from pccompile.runtime.inspection import Inspection
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


class LastingState(nn.Module):
    """A module for each slot, with a buffer for each of its owners: `lasting.precision.tanh`. None is the model's."""

    def grow(self, compiled: Compiled, device: torch.device) -> None:
        """Make what `compiled` keeps and is not there yet. Raises CompileError where it is there in another shape."""
        pc = compiled.pc
        for kept in compiled.program.kept.values():
            owner, slot = kept.place
            buffers = self._modules.setdefault(slot, nn.Module())._buffers  # type: ignore[union-attr]
            start = beginning(pc, kept)
            there = buffers.setdefault(owner, start.to(device))
            if there is None or there.shape != start.shape:
                what = f"{slot} of {owner} is kept as {list(there.shape) if there is not None else None}"
                raise CompileError(f"{what}, and would be {list(start.shape)}", hint="compile the model anew")

    def tables(self, compiled: Compiled, tables: Tables, device: torch.device) -> Tables:
        """`tables` with copies of what a program reads of this, in the type of their owners."""
        pc, buffers = compiled.pc, dict(tables[1])
        for kept in compiled.program.kept.values():
            found = self._of(kept)
            buffers[kept.path(pc.home)] = found.detach().to(device, _type(pc, kept).dtype, copy=True)
        return tables[0], buffers

    def keep(self, compiled: Compiled, found: Mapping[str, Tensor]) -> None:
        """Let what a call has found, by its path, be what the next one begins with."""
        with torch.no_grad():
            for kept in compiled.program.moved.values():
                self._of(kept).copy_(found[kept.path(compiled.pc.home)])

    def _of(self, kept: Lasting) -> Tensor:
        owner, slot = kept.place
        module = self._modules[slot]
        assert module is not None
        found = module._buffers[owner]
        assert found is not None
        return found


def beginning(pc: PCGraph, kept: Lasting) -> Tensor:
    """What a slot is before the first call, in its shape."""
    type_ = _type(pc, kept)
    if isinstance(kept.start, Tensor):
        start = kept.start.detach().to("cpu", type_.dtype, copy=True)
        return start.reshape((1,) * (len(type_.shape) - start.dim()) + tuple(start.shape))
    shape = type_.shape if kept.owner in pc.graph.params else (1, *type_.shape[1:])[: len(type_.shape)]
    sizes = [1 if kept.single else n for n in shape]
    return torch.full(sizes, float(kept.start), dtype=type_.dtype)


def _type(pc: PCGraph, kept: Lasting) -> TensorType:
    return pc.graph.params.get(kept.owner) or next(v.type for v in pc.vertices if v.name == kept.owner)
