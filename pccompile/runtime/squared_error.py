"""Whether the targets of a call are those of half the squared error, which is the loss where none was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.ir import Graph, TensorType
from pccompile.runtime.loaded_program import FORMS, Runtime
from pccompile.runtime.loss_lengths import shape_of

HINT = "give a tensor like the output, or compile with loss= for targets of another kind"


def refuse_other_targets(runtime: Runtime, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> None:
    """Raise CompileError, before anything has run, where an output has no target, or one of another form.

    inputs: the tensors of the call, which say how long the outputs are.
    """
    compiled = runtime.compiled
    if compiled is None or compiled.loss is not None or runtime.options.roles:
        return
    form = tuple((t.shape, t.dtype) for t in targets), *(t.shape for t in inputs.values())
    if form not in runtime.fitting:
        _refuse(runtime, compiled.graph, inputs, targets)
        runtime.fitting = {*runtime.fitting, form} if len(runtime.fitting) < FORMS else {form}


def _refuse(runtime: Runtime, graph: Graph, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> None:
    places = [i for i in runtime.source.errors if i < runtime.writes.results]
    if len(targets) != len(places):
        what = f"half the squared error takes a target for each output with an error, {len(places)} in all"
        raise CompileError(f"{what}, and was given {len(targets)} tensors", hint=HINT)
    for i, target in zip(places, targets, strict=True):
        type_ = graph.types[graph.outputs[i]]
        assert isinstance(type_, TensorType)
        if torch.promote_types(target.dtype, type_.dtype) != type_.dtype:
            what = f"the target of output {i} is {_dtype(target.dtype)}, and the output is {_dtype(type_.dtype)}"
            raise CompileError(what, hint=f"cast it: target.to({type_.dtype})")
        if target.shape == type_.shape:
            continue
        shape = shape_of(type_, runtime.interface, inputs)
        if not _spreads(target.shape, shape):
            what = f"the target of output {i} has the shape {tuple(target.shape)}, and the output {shape}"
            raise CompileError(what, hint=HINT)


def _spreads(shape: Sequence[int], whole: Sequence[int | None]) -> bool:
    """Whether a tensor of this shape may be broadcast to that of `whole`, and not the other way round."""
    pairs = zip(reversed(shape), reversed(whole), strict=False)
    return len(shape) <= len(whole) and all(m is None or n in (1, m) for n, m in pairs)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
