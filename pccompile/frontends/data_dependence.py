"""What is said of Python code that reads a tensor's value while a model is captured, where there are no values."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from torch import nn
from torch.ao.quantization import FakeQuantizeBase
from torch.ao.quantization.observer import UniformQuantizationObserverBase
from torch.nn.modules import container, module

from pccompile.diagnostics import printable

CUT = 'torch.compile(model, backend="pccompile"), which cuts the program there'
LONGEST = 100
"""So many characters of a source line are shown."""


@dataclass(frozen=True)
class Reading:
    """Which module reads a value, the path of that module, and what to do about it."""

    what: str
    module: str
    hint: str


def reading_of(model: nn.Module, error: BaseException) -> Reading:
    """The reading of a value that `error` ended the capture of `model` at."""
    paths = {id(m): path for path, m in model.named_modules()}
    calls = [(frame, line, _first_argument(frame)) for frame, line in _frames(error)]
    own = [entry for entry in calls if id(entry[2]) in paths and entry[0].f_code.co_filename != module.__file__]
    chosen = [entry for entry in own if entry[0].f_code.co_filename != container.__file__]
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
