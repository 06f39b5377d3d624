"""A compiled model in pieces, with all that can be asked of it: what it learns, and reports about each piece."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from pccompile.algorithms import ALGORITHMS
from pccompile.api.module import PCModule
from pccompile.diagnostics import CompileError
from pccompile.pipeline import Hook, Options
from pccompile.report.explain import explain
from pccompile.report.summary import summary
from pccompile.report.tables import Page
from pccompile.runtime.module import Criterion
from pccompile.runtime.pieces import ModuleInPieces
from pccompile.runtime.pieces_check import NothingLearns, compile_pieces
from pccompile.runtime.saving import check_writable
from pccompile.runtime.torch_compile import Piece
from pccompile.runtime.trial_run import has_hooks


class PieceModule(Piece, PCModule):
    """A piece that was compiled, with the reports about it and its file."""


class PiecewiseModule(ModuleInPieces, PCModule):
    """`model` with predictive-coding gradients, in pieces: what torch.export cannot capture whole.

    `pieces` holds a compiled module for each that has been met. What a report says of one program (`infer`, `analyse`,
    `cost`, `locality`, `save`) is asked of a piece; of the whole it raises CompileError.
    """

    kind = PieceModule

    def summary(self) -> Page:
        """The notes on the whole, and the summary of each piece."""
        return self._each(summary)

    def explain(self, vertex: str | None = None) -> Page:
        """Of each piece where its vertices come from; with a name, of the pieces that have a vertex of that name."""
        if vertex is None:
            return self._each(explain)
        having = [i for i, piece in enumerate(self.pieces) if any(v.name == vertex for v in piece.graph.vertices)]
        if not having:
            raise self._refuse(f"no piece has a vertex {vertex}")
        return self._each(lambda piece: explain(piece, vertex), having)

    def save_pieces(self, folder: str | Path, name: str = "model") -> tuple[Path, ...]:
        """Write each piece that has been met as `save` does, called `name_1`, `name_2`, …; return the paths.

        What lies between the pieces is the model's own Python, which is in none of the files. Raises CompileError,
        before anything is written, where a file is there that pccompile did not generate.
        """
        named: dict[str, Any] = {f"{name}_{i + 1}": piece for i, piece in enumerate(self.pieces)}
        for each in named:
            check_writable(Path(folder), each)
        return tuple(path for each, piece in named.items() for path in piece.save(folder, each))

    def _each(self, report: Any, places: list[int] | None = None) -> Page:
        """A report about each piece, or about those at some places, under its number."""
        parts: list[Any] = [f"note: {note}" for note in self.notes]
        for i, piece in enumerate(self.pieces):
            if places is None or i in places:
                parts += ["", f"piece {i + 1} of {len(self.pieces)}", *report(piece).parts]
        return Page(tuple(parts))


def in_pieces(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Options,
    loss: Criterion | None,
    hook: Hook | None,
    check: bool,
) -> PiecewiseModule:
    """`model` compiled in pieces, which the example has run.

    Raises CompileError, and NotRun where the model itself does not run on the example.
    """
    if reason := not_in_pieces(options):
        raise CompileError(f"{type(model).__name__} is not compiled in pieces, since {reason}")
    how = model, options, loss, hook, check
    if not has_hooks(model):  # else the example is not run, and does not tell what is left to autograd
        pc = PiecewiseModule(*how)
        with suppress(NothingLearns), warnings.catch_warnings(record=True) as said:
            compile_pieces(pc, args, kwargs, check)
        if pc.pieces and not pc.left:
            for one in said:
                warnings.warn(one.message, one.category, stacklevel=6)
            return pc
    pc = PiecewiseModule(*how)
    pc.cut_layers()
    compile_pieces(pc, args, kwargs, check)
    return pc


def not_in_pieces(options: Options) -> str:
    """Why a model is not to be had in pieces with these options; '' where it is."""
    if ALGORITHMS[options.algorithm].equals != "backprop":  # only then do gradients of pieces make up those of all
        return f"{options.algorithm} needs the whole graph"
    if options.jit:
        return "jit=True compiles one program"
    if (options.feedback, options.derivatives) != ("transpose", "exact"):
        return "feedback by other weights is of one program"
    return ""
