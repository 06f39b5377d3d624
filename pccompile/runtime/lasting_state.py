"""What a program keeps between calls: buffers of the compiled module, and none of the model.

They have the path of their slot and its owner under one name, `lasting.precision.tanh`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pccompile.diagnostics import CompileError
from pccompile.ir import Lasting, PCGraph, TensorType
from pccompile.pipeline import Compiled
from pccompile.runtime.model_state import Tables


class LastingState(nn.Module):
    """A module for each slot, with a buffer for each of its owners."""

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
