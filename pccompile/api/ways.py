"""The ways to come by the operations of a model: whole by torch.export, in pieces, or along the path that Python takes.

Each is asked for by its name; "auto" takes the first that has all gradients, and tells the reasons of all where none is
left.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from pccompile.algorithms import ALGORITHMS
from pccompile.api.module import PCModule
from pccompile.api.pieces import PiecewiseModule, in_pieces
from pccompile.diagnostics import CaptureError, CompileError, Problem
from pccompile.frontends.imported import Locate
from pccompile.frontends.objects import open_objects
from pccompile.pipeline import Hook, Options
from pccompile.runtime.comparison import NotRun
from pccompile.runtime.module import Criterion
from pccompile.runtime.on_paths import ModuleOnPaths

Capture = Literal["auto", "export", "path", "pieces"]
"""How `compile` comes by the operations of a model."""


class PathModule(ModuleOnPaths, PCModule):
    """`model` with predictive-coding gradients, whole, with a program for each path that its calls take."""


@dataclass(frozen=True)
class Request:
    """What is to be compiled, and how."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    options: Options
    loss: Criterion | None
    dynamic_shapes: Any
    locate: Locate | None
    hook: Hook | None
    check: bool

    def whole(self) -> PCModule:
        """Captured by torch.export. Raises CompileError."""
        how = self.loss, self.dynamic_shapes, self.locate
        pc = PCModule(self.model, self.options, *how, hook=self.hook, check=self.check)
        pc.prepare(self.args, self.kwargs)
        return pc

    def along_path(self, by_autograd: bool = False) -> PathModule:
        """Captured along the path of the example. Raises CompileError.

        by_autograd: whether calls whose path is one too many are left to autograd, where that has the same gradients.
        """
        if self.options.jit:
            raise CompileError('jit=True compiles what reads no numbers: it goes without capture="path"')
        how = self.loss, self.dynamic_shapes, self.locate
        pc = PathModule(self.model, self.options, *how, hook=self.hook, check=self.check)
        pc.by_autograd = by_autograd and ALGORITHMS[self.options.algorithm].equals == "backprop"
        pc.follow_paths()
        pc.prepare(self.args, self.kwargs)
        return pc

    def in_pieces(self) -> PiecewiseModule:
        """Cut by Dynamo. Raises CompileError, and NotRun where the model itself does not run on the example."""
        if self.locate is not None or self.dynamic_shapes is not None:
            raise CompileError("an ONNX file, and dynamic_shapes, are of one program", hint='capture="export"')
        return in_pieces(self.model, self.args, self.kwargs, self.options, self.loss, self.hook, self.check)


def captured(request: Request, capture: Capture) -> PCModule:
    """The model as a compiled module, in the way that is asked for. Raises CompileError."""
    open_objects((request.args, request.kwargs))
    if capture == "pieces":
        try:
            return request.in_pieces()
        except NotRun as e:
            raise CompileError(f"{type(request.model).__name__} is not compiled in pieces: {e}") from e
    if capture == "path":
        return request.along_path()
    try:
        return request.whole()
    except CaptureError as refusal:
        if capture == "export" or request.locate is not None:
            raise
        return _after(refusal, request)


def _after(refusal: CaptureError, request: Request) -> PCModule:
    """The model in one of the ways that are left where torch.export refuses it; else all reasons in one error.

    Pieces come first, since they cost no second run of forward, unless Dynamo leaves parameters to autograd. Then the
    path does, unless it is another one at each call: where random numbers or numbers with fractions decide it.
    """
    problems: list[Problem] = [*refusal.problems]
    cut, said = None, list[warnings.WarningMessage]()
    try:
        with warnings.catch_warnings(record=True) as said:
            cut = request.in_pieces()
    except NotRun:
        raise refusal from None
    except CompileError as e:
        problems += _told(e, "in pieces")
    if cut is None or cut.left:
        try:
            along = request.along_path(by_autograd=True)
        except CompileError as e:
            problems += _told(e, "along a path")
        else:
            if cut is None or along.steady(request.args, request.kwargs):
                return along
    if cut is None:
        raise CompileError(tuple(dict.fromkeys(problems))) from refusal
    for one in said:
        warnings.warn(one.message, one.category, stacklevel=5)
    return cut


def _told(error: CompileError, way: str) -> list[Problem]:
    return [p if p.what.startswith(way) else replace(p, what=f"{way}: {p.what}") for p in error.problems]
