"""What torch.export makes of a model: the call, what is freed in it, and its refusals in one line."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pccompile.diagnostics import NOWHERE, CaptureError, CompileError, Location, ModelValueError
from pccompile.frontends.autocast import current
from pccompile.frontends.data_dependence import reading_of
from pccompile.frontends.forward_hooks import recorded_hooks
from pccompile.frontends.intercept import as_parameters, refuse_backward_hooks, refuse_inference_parameters
from pccompile.frontends.packed import Packing, refuse_packed_arguments
from pccompile.frontends.patches import patched
from pccompile.frontends.paths import Reading
from pccompile.frontends.places import Place
from pccompile.frontends.signature import free_batch, spelled_out
from pccompile.frontends.states import StateTrace
from pccompile.frontends.subclasses import refuse_acting

AUTOCAST = "pccompile_autocast"
"""Where a program says under which autocast it was captured."""
_exporting: list[int] = []
"""The threads that capture a model now: at most one, as often as captures are nested."""
HOOKS = "pccompile_hooks"
"""Where a program says what the hooks of the model did."""
LEARNING = "pccompile_learning"
"""Where a program says whether what it computes depends on which tensors require a gradient."""
STATES = "pccompile_states"
"""Where a program says which attributes of the model it reads and writes."""


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    fixed: bool = False,
    places: tuple[Place, ...] = (),
    path: tuple[Reading, ...] = (),
) -> ExportedProgram:
    """The program that torch.export captures, in the mode (train or eval) that `model` is in; that stays what it was.

    dynamic_shapes: as torch.export takes it; None frees dimension 0 of every tensor input where the model allows that.
    fixed: free no dimension. places: attributes that are known to be states; others are found.
    path: what Python reads from tensors on the path to be captured; without it, reading is refused.
    Raises CompileError where torch.export cannot capture the model.
    """
    refuse_packed_arguments((args, kwargs))
    args, named = _apart((args, dict(kwargs or {})))
    refuse_backward_hooks(model)
    refuse_inference_parameters(model)
    refuse_acting((*model.named_parameters(), *model.named_buffers()))
    places = tuple(p for p in places if p.is_open(model))
    uncounted: frozenset[Place] = frozenset()
    with as_parameters(model), spelled_out(model, named), recorded_hooks(model) as hooks:
        attempts = [free_batch(model, args, named), None]
        if fixed or dynamic_shapes is not None:
            attempts = [None if fixed else dynamic_shapes]
        packing = Packing()
        while True:
            trace = StateTrace(model, places, uncounted, path)
            try:
                with patched(model, trace, packing) as noticed, _unmarked((args, named)):
                    _exporting.append(threading.get_ident())
                    try:
                        program = torch.export.export(model, args, named, dynamic_shapes=attempts[0], strict=False)
                    finally:
                        _exporting.pop()
            except CompileError:
                raise
            except Exception as e:
                if not trace.counters and (settled := packing.settled(e)):
                    packing = settled
                    continue
                if not trace.counters and len(attempts) == 1:
                    raise _refused(model, e, packing) from e
                uncounted |= frozenset(trace.counters)
                if not trace.counters:
                    attempts, packing = attempts[1:], Packing()
                continue
            if not trace.changed and not trace.miscounted:
                program.graph_module.meta[LEARNING] = noticed.learning
                program.graph_module.meta[AUTOCAST] = current(device_of(model, (args, named)))
                program.graph_module.meta[HOOKS] = hooks
                program.graph_module.meta[STATES] = trace.captured
                return program
            places, uncounted = (*places, *trace.changed), uncounted | trace.miscounted


def exported_elsewhere() -> bool:
    """Whether it is another thread that captures a model now, which torch tells all threads alike."""
    return bool(_exporting) and _exporting[-1] != threading.get_ident()


def device_of(model: nn.Module, arguments: Any) -> str:
    """The kind of device that a model runs on."""
    tensor: torch.Tensor | None = next(model.parameters(), None)
    if tensor is None:
        tensor = next((t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)), None)
    return "cpu" if tensor is None else tensor.device.type


def _apart(arguments: Any) -> Any:
    """Example arguments of which no two are one tensor: torch.export would take them for one input ever after.

    Nor does it take tensors that were made under torch.inference_mode.
    """
    seen: set[int] = set()

    def own(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in seen and not tensor.is_inference():
            seen.add(id(tensor))
            return tensor
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    return pytree.tree_map_only(torch.Tensor, own, arguments)


@contextmanager
def _unmarked(arguments: Any) -> Iterator[None]:
    """Within: torch.export may mark example tensors as free in a dimension, which it would remember ever after."""
    tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    before = [dict(t.__dict__) for t in tensors]
    try:
        yield
    finally:
        for tensor, attributes in zip(tensors, before, strict=True):
            tensor.__dict__.clear()
            tensor.__dict__.update(attributes)


def _refused(model: nn.Module, error: Exception, packing: Packing) -> CompileError:
    text = str(error).strip()
    line = next((ln.strip() for ln in text.splitlines() if ln.strip()), type(error).__name__)
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    mine = [f for f in frames if "/torch/" not in f[0]]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/torch/" not in code.co_filename and "/pccompile/" not in code.co_filename:
            mine.append((code.co_filename, str(trace.tb_lineno)))
        trace = trace.tb_next
    where = Location(file=mine[-1][0].rsplit("/", 1)[-1], line=int(mine[-1][1])) if mine else NOWHERE
    if type(error) is ValueError and not packing.longest:
        return ModelValueError(line, where, f"{type(model).__name__} itself refuses these arguments")
    if packing.longest:
        line = f"what is computed depends on the lengths of packed sequences: {line}"
        hint = (
            "give pad_packed_sequence as total_length the steps of what was packed, or more, or use "
            'torch.compile(model, backend="pccompile"), which cuts the program there'
        )
    elif "data-dependent expression" in line:
        found = reading_of(model, error)
        line, where, hint = found.what, replace(where, module=found.module), found.hint
    else:
        hint = (
            "rewrite data-dependent Python control flow and .item() there, compile the part of the model that has "
            'none, or use torch.compile(model, backend="pccompile"), which cuts the program there'
        )
    return CaptureError(f"torch.export cannot capture {type(model).__name__}: {line}", where, hint)
