"""A node's subgraphs, run among the values of the graph around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pccompile.frontends.onnx.graph import OnnxGraph, free_names
from pccompile.frontends.onnx.registry import Node
from pccompile.frontends.onnx.values import NOTED, Host, Value, as_tensor


class Runs(Protocol):
    """A module that runs graphs."""

    def execute(self, graph: OnnxGraph, values: dict[str, Value]) -> list[Value]:
        """The outputs of `graph`, given the values that it and its subgraphs read."""
        ...

    def override_tensors(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Within: other tensors stand at these paths."""
        ...

    def tensor_at(self, path: str) -> Tensor:
        """The tensor at `path`."""
        ...


@dataclass(frozen=True)
class Scope:
    """The values that subgraphs see, and the module that runs them."""

    module: Runs
    values: dict[str, Value]

    def __call__(self, graph: OnnxGraph, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a subgraph."""
        return self.module.execute(graph, {**self.values, **dict(zip(graph.inputs, inputs, strict=True))})

    def guarded(self, node: Node, graph: OnnxGraph, chosen: Tensor) -> list[Value]:
        """The outputs of a branch of `node`. What it reads hears of its errors only where it is `chosen`.

        Elsewhere they may be no numbers, and 0 times those is none.
        """
        read = {n: _guarded(self.values[n], chosen) for n in sorted(free_names(node)) if n in self.values}
        kept = [c for g in graph.subgraphs() for c in g.constants.values() if c.kind == "parameter"]
        with self.module.override_tensors({c.path: _learning(self.module.tensor_at(c.path), chosen) for c in kept}):
            return self.module.execute(graph, {**self.values, **read})

    def choose(
        self,
        node: Node,
        condition: Tensor,
        branches: tuple[OnnxGraph, OnnxGraph],
        made: tuple[list[Tensor], list[Tensor]],
    ) -> list[Value] | None:
        """The outputs of the branch that a traced condition chooses, by `torch.cond`; None where that cannot be.

        made: the tensors that a trial run of each branch made of numbers.
        """
        read = {n: self.values[n] for n in sorted(free_names(node)) if n in self.values}
        if any(isinstance(v, list) or (isinstance(v, Host) and v.symbolic) for v in read.values()):
            return None
        tensors = {n: t for n, v in read.items() if (t := v.tensor if isinstance(v, Host) else v) is not None}
        paths = sorted({c.path for g in branches for s in g.subgraphs() for c in s.constants.values() if c.path})
        if not all(isinstance(t, Tensor) for t in tensors.values()):
            return None

        starts = len(tensors), len(tensors) + len(paths), len(tensors) + len(paths) + len(made[0])
        complete = [False, False]

        def branch(index: int) -> Callable[..., tuple[Tensor, ...]]:
            def run(*given: Tensor) -> tuple[Tensor, ...]:
                inner: dict[str, Value] = {}
                own = given[starts[1] : starts[2]] if index == 0 else given[starts[2] :]
                for name, tensor in zip(tensors, given, strict=False):
                    outer = read[name]
                    inner[name] = replace(outer, tensor=tensor) if isinstance(outer, Host) else tensor
                weights = dict(zip(paths, given[starts[0] : starts[1]], strict=True))
                with self.module.override_tensors(weights), Made(own) as trial:
                    results = self.module.execute(branches[index], {**self.values, **inner})
                complete[index] = not trial.left and not trial.tensors
                return tuple(as_tensor(r).clone() for r in results)  # a result must not be an operand

            return run

        operands: tuple[Any, ...] = (*tensors.values(), *map(self.module.tensor_at, paths), *made[0], *made[1])
        results = list(torch.ops.higher_order.cond(condition.reshape(()), branch(0), branch(1), operands))
        return results if all(complete) else None


def _guarded(value: Value, chosen: Tensor) -> Value:
    if isinstance(value, list):
        return [_guarded(v, chosen) for v in value]
    return _learning(value, chosen) if isinstance(value, Tensor) else value


def _learning(tensor: Tensor, chosen: Tensor) -> Tensor:
    """`tensor`, to which an error passes only where it is `chosen`."""
    return torch.where(chosen, tensor, tensor.detach()) if tensor.is_floating_point() else tensor


class Made(TorchFunctionMode):
    """Within: tensors made of numbers are noted in `tensors`, or those that are handed in stand in their places.

    A branch of `torch.cond` may hold none of its own, so what a trial run of it makes becomes its operands. Single
    numbers may stay.
    """

    def __init__(self, handed: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.left = None if handed is None else list(handed)
        self.around = NOTED.get()

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self.token = NOTED.set(self.note)
        return self

    def __exit__(self, *error: Any) -> None:
        NOTED.reset(self.token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        make = partial(func, *args, **(kwargs or {}))
        numbers = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor) and np.size(args[0]) > 1
        return self.put(make) if numbers else make()

    def note(self, make: Callable[[], Tensor]) -> Tensor:
        """What stands for a tensor that is made of an array; a trial around this one hears of it too."""
        around = self.around
        return self.put(make if around is None else partial(around, make))

    def put(self, make: Callable[[], Tensor]) -> Tensor:
        """The next tensor that was handed in, else a new one."""
        if self.left:
            return self.left.pop(0)
        self.tensors.append(make())
        return self.tensors[-1]
