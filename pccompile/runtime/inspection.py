"""The program of a compiled module: its stages, its file, and what is to be known of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError
from pccompile.pipeline import Compiled, Options
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import SQUARED_ERROR
from pccompile.runtime.model_state import Tables
from pccompile.runtime.shared_tables import SharedTables


class Inspection(SharedTables):
    """The program that a module compiled or used last."""

    _last: Runtime | None
    options: Options
    criterion: Any

    def tables(self, runtime: Runtime) -> Tables:
        """The model's parameters and buffers as the generated functions take them."""
        raise NotImplementedError

    @property
    def compiled(self) -> Compiled:
        """All stages of the program that was compiled or used last."""
        if self._last is None or self._last.compiled is None:
            raise CompileError(
                "nothing has been compiled yet", hint="call the model once, or compile it with example arguments"
            )
        return self._last.compiled

    @property
    def checked(self) -> Checked | None:
        """What was compared with eager torch when that program was compiled; None without the check."""
        return None if self._last is None else self._last.checked

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about that program: what was not compared, and which loss inference takes."""
        if self._last is None:
            return ()
        squared = (SQUARED_ERROR,) if self._last.source.moving and self.criterion is None else ()
        return (
            *squared,
            *map(str, self._last.options.choices),
            *self._last.notes,
            *(self._last.checked.notes if self._last.checked else ()),
        )

    @property
    def source(self) -> str:
        """The generated file."""
        return self.compiled.source.text

    @property
    def graph(self) -> Any:
        """The predictive-coding graph: vertices with their predictions, errors and messages."""
        return self.compiled.pc

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names that the generated file uses, ties written once."""
        assert self._last is not None
        params, buffers = self.tables(self._last)
        return {**{k: v.detach() for k, v in params.items()}, **buffers}
