"""Layers of torch.nn as pieces of their own, where Dynamo leaves the function that calls them to Python.

Dynamo compiles no function of torch's own by itself. Within a call, such a layer is run by a function of ours, each of
a code of its own, so that Dynamo counts its forms apart.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of torch.nn with parameters in a model, of nested ones the outermost, each once."""
    seen: set[int] = set()
    stack = [module]
    while stack:
        found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if not type(found).__module__.startswith("torch.nn.") or isinstance(found, CONTAINERS):
            stack += reversed(list(found.children()))
        elif "forward" not in found.__dict__ and next(found.parameters(), None) is not None:
            yield found


class Layers:
    """The layers of a model, with the functions that run them in its pieces."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.forwards = [(layer, _forward(layer, i)) for i, layer in enumerate(layers)]

    @contextmanager
    def own(self) -> Iterator[None]:
        """Within: the layers are run by these functions."""
        for layer, forward in self.forwards:
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer, _ in self.forwards:
                layer.__dict__.pop("forward", None)


def _forward(layer: nn.Module, number: int) -> Any:
    """What runs a layer, with a code of its own."""
    kind = type(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return kind.forward(layer, *args, **kwargs)

    code = forward.__code__.replace(co_name=f"layer_{number}")
    return types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
