"""What torch.export makes of a model: the call, what is freed in it, and its refusals in one line."""

from __future__ import annotations

import linecache
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.ao.quantization import FakeQuantizeBase
from torch.ao.quantization.observer import UniformQuantizationObserverBase
from torch.export import ExportedProgram
from torch.nn.modules import container, module
from torch.utils import _pytree as pytree

from pccompile.diagnostics import NOWHERE, CaptureError, CompileError, Location, ModelValueError, printable
from pccompile.frontends.autocast import Autocast, current
from pccompile.frontends.derivatives import Differentiates
from pccompile.frontends.forward_hooks import HookRecord, recorded_hooks
from pccompile.frontends.intercept import as_parameters, refuse_backward_hooks, refuse_inference_parameters
from pccompile.frontends.packed import Packing, refuse_packed_arguments
from pccompile.frontends.patches import patched
from pccompile.frontends.places import Place
from pccompile.frontends.refusal_hints import GENERAL, hint_for
from pccompile.frontends.signature import CaptureForm, freedoms, spelled_out
from pccompile.frontends.states import StateTrace, WrittenStates
from pccompile.frontends.subclasses import refuse_acting

NOTES = "pccompile_notes"
"""Where a program has its `CaptureNotes`."""
_exporting: list[int] = []
"""The threads that capture a model now: at most one, as often as captures are nested."""
CUT = 'torch.compile(model, backend="pccompile"), which cuts the program there'
LONGEST = 100
"""So many characters of a source line are shown."""


@dataclass(frozen=True)
class CaptureNotes:
    """What was noticed while a program was captured.

    autocast: that under which it was. hooks: what those of the model did. states: the attributes that it reads and
    writes. learning: whether it depends on which tensors require a gradient. asked: which tensors among the arguments
    forward asks to require a gradient.
    """

    autocast: Autocast | None = None
    hooks: HookRecord | None = None
    states: WrittenStates = field(default_factory=WrittenStates)
    learning: bool = False
    asked: tuple[int, ...] = ()


def export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], form: CaptureForm) -> ExportedProgram:
    """The program that torch.export captures, in the mode (train or eval) that `model` is in; that stays what it was.

    Raises CompileError where torch.export cannot capture the model.
    """
    refuse_packed_arguments((args, kwargs))
    args, named = _apart((args, dict(kwargs)))
    refuse_backward_hooks(model)
    refuse_inference_parameters(model)
    refuse_acting((*model.named_parameters(), *model.named_buffers()))
    with as_parameters(model), spelled_out(model, named), recorded_hooks(model) as hooks:
        shapes = freedoms(model, args, named, form)
        assumed = _Assumed(shapes, tuple(p for p in form.states if p.is_open(model)))
        while True:
            trace = StateTrace(model, assumed.places, assumed.uncounted, form.path, assumed.below)
            try:
                with patched(model, trace, assumed.packing) as noticed, _unmarked((args, named)):
                    _exporting.append(threading.get_ident())
                    try:
                        program = torch.export.export(model, args, named, dynamic_shapes=shapes[0], strict=False)
                    finally:
                        _exporting.pop()
            except CompileError:
                raise
            except Exception as e:
                if not assumed.less(trace, e):
                    raise _refused(model, e, assumed.packing) from e
                continue
            if not trace.changed and not trace.miscounted:
                autocast = current(device_of(model, (args, named)))
                notes = CaptureNotes(autocast, hooks, trace.captured, noticed.learning, trace.asked)
                program.graph_module.meta[NOTES] = notes
                return program
            assumed.places += trace.changed
            assumed.uncounted |= trace.miscounted


@dataclass
class _Assumed:
    """What one attempt to trace a model assumes, of which the next one assumes less where it fails.

    shapes: the lengths that are free, of which the first counts. places: attributes that are states. uncounted: numbers
    among these that decide. below: forward differentiates. packing: what is known of packed sequences.
    """

    shapes: list[Any]
    places: tuple[Place, ...]
    uncounted: frozenset[Place] = frozenset()
    below: bool = False
    packing: Packing = field(default_factory=Packing)

    def less(self, trace: StateTrace, error: Exception) -> bool:
        """Take back an assumption that may have failed; whether there was one."""
        if isinstance(error, Differentiates) or (trace.transforms.entered and not self.below):
            self.below = True
        elif trace.counters:
            self.uncounted |= frozenset(trace.counters)
        elif settled := self.packing.settled(error):
            self.packing = settled
        elif len(self.shapes) > 1:
            del self.shapes[0]
            self.packing = Packing()
        else:
            return False
        return True


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
    mine = [f for f in frames if "/torch/" not in f[0] and not f[0].startswith("<")]
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/torch/" not in code.co_filename and "/pccompile/" not in code.co_filename and code.co_filename[0] != "<":
            mine.append((code.co_filename, str(trace.tb_lineno)))
        trace = trace.tb_next
    where = Location(file=mine[-1][0].rsplit("/", 1)[-1], line=int(mine[-1][1])) if mine else NOWHERE
    if type(error) is ValueError and not packing.longest and hint_for(line) is GENERAL:
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
        hint = hint_for(line)
    return CaptureError(f"torch.export cannot capture {type(model).__name__}: {line}", where, hint)


@dataclass(frozen=True)
class Reading:
    """Which module reads a value, the path of that module, and what to do about it."""

    what: str
    module: str
    hint: str


class Wrapper(nn.Module):
    """A module of ours around code of the user's: no place that the user knows."""


def reading_of(model: nn.Module, error: BaseException) -> Reading:
    """The reading of a value that `error` ended the capture of `model` at."""
    paths = {id(m): path for path, m in model.named_modules()}
    calls = [(frame, line, _first_argument(frame)) for frame, line in _frames(error)]
    own = [entry for entry in calls if id(entry[2]) in paths and entry[0].f_code.co_filename != module.__file__]
    chosen = [
        entry
        for entry in own
        if entry[0].f_code.co_filename != container.__file__ and not isinstance(entry[2], Wrapper)
    ]
    if not chosen:
        hint = f"choose with torch.where or torch.cond, or use {CUT}"
        return Reading("Python code reads a tensor's value", "", hint)
    frame, line, owner = chosen[-1]
    text = linecache.getline(frame.f_code.co_filename, line).strip()
    shown = f" in `{printable(text, LONGEST)}`" if text else ""
    path = paths[id(owner)]
    reads = f"{type(owner).__name__} reads a tensor's value{shown}"
    if own[-1] is not chosen[-1]:
        entries = type(own[-1][2]).__name__
        what = f"a tensor's value chooses an entry of the {entries} {paths[id(own[-1][2])]}{shown}"
        return Reading(what, path, f"run every entry and choose with torch.where, use torch.cond, or {CUT}")
    if isinstance(owner, FakeQuantizeBase | UniformQuantizationObserverBase):
        return Reading(reads, path, f"use torch.ao.quantization.FusedMovingAvgObsFakeQuantize there, or {CUT}")
    return Reading(
        reads, path, f"choose with torch.where or torch.cond, compile the part that reads none, or use {CUT}"
    )


def _first_argument(frame: FrameType) -> object:
    """What a method was called on, by whatever name."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next
