"""A module that stands for another one: it holds the other's own tables, so that the two can never differ."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

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
        if isinstance(value, Tensor) and "model" in self.__dict__:
            setattr(self.__dict__["model"], name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__["model"].__dict__.get(name) if "model" in self.__dict__ else None
        return value if isinstance(value, Tensor) else super().__getattr__(name)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.__dict__["model"], name)
