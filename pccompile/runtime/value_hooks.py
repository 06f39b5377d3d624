"""Hooks on what a call returns and keeps: autograd does not see what flows from one such value to another."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any
from weakref import ReferenceType

from torch import Tensor

from pccompile.diagnostics import CompileError
from pccompile.passes.activity import passes_on
from pccompile.pipeline import Compiled


def refuse_value_hooks(compiled: Compiled, results: Sequence[ReferenceType[Tensor]], used: Collection[str]) -> None:
    """Raise CompileError where a hook on one of `results` would miss a part of its gradient.

    used: the outputs that a loss sends something to, by the names that they have in the graph.
    """
    for i, reference in enumerate(results):
        tensor = reference()
        if tensor is not None and tensor.requires_grad and _is_watched(tensor) and _feeds(compiled, i, used):
            raise CompileError(
                f"the gradient of {_name(compiled, i)} is asked for (Tensor.register_hook, retain_grad), and a part "
                "of it flows within the compiled model",
                hint="compile the part of the model behind that value as a model of its own",
            )


def _is_watched(tensor: Tensor) -> bool:
    """Whether a user's hook is on a tensor, or its gradient is to be kept. torch's own hooks only take the time."""
    return tensor.retains_grad or any(not _is_torchs(h) for h in (tensor._backward_hooks or {}).values())


def _is_torchs(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "torch"


def _feeds(compiled: Compiled, index: int, used: Collection[str]) -> bool:
    """Whether an error goes from a used output to this one, another of the model's outputs."""
    graph = compiled.graph
    behind = {graph.outputs[index]}
    for n in graph.nodes:
        if passes_on(n) and not behind.isdisjoint(n.inputs):
            behind.add(n.name)
    return not (behind - {graph.outputs[index]}).isdisjoint(used)


def _name(compiled: Compiled, index: int) -> str:
    graph = compiled.imported.graph
    states = [path for path, value in graph.states.items() if value == graph.outputs[index]]
    return f"the state {states[0]}" if states else f"output {index} of the model"
