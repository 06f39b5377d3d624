"""The program of a compiled module: its stages, its file, and what is to be known of it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from pccompile.analysis.compare import Checked
from pccompile.diagnostics import CompileError
from pccompile.pipeline import Compiled, Options
from pccompile.runtime.forwarding import of_model, takes
from pccompile.runtime.loaded_program import Runtime
from pccompile.runtime.losses import SQUARED_ERROR
from pccompile.runtime.model_state import Tables

TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""What is shared."""


class SharedTables(nn.Module):
    """A module with the parameters, buffers and submodules of `model`; tensors that are set on it are set there."""

    def _share(self, model: nn.Module) -> None:
        self.__dict__["model"] = model
        for table in TABLES:
            self.__dict__[table] = model.__dict__[table]
        self.training = model.training

    def train(self, mode: bool = True) -> Any:
        """Set training mode, here and in the model."""
        self.__dict__["model"].train(mode)
        self.training = mode
        return self

    def _anew(self) -> dict[str, Any]:
        """Attributes that a copy does not take over, as they are in a new module."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = self.__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        own = {k: v for k, v in self.__dict__.items() if k not in TABLES and k != "model"}
        twin.__dict__.update(own | self._anew())
        twin._share(copy.deepcopy(self.__dict__["model"], memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in TABLES} | self._anew()

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(state)
        self._share(state["model"])

    def __setattr__(self, name: str, value: Any) -> None:
        if "model" in self.__dict__ and (isinstance(value, Tensor) or takes(self, name)):
            setattr(self.__dict__["model"], name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if "model" not in self.__dict__:
            return super().__getattr__(name)
        value = self.__dict__["model"].__dict__.get(name)
        if isinstance(value, Tensor):
            return value
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return of_model(self.__dict__["model"], name)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__dict__["model"].forward)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.__dict__["model"], name)


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
