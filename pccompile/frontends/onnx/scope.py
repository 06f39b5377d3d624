"""A node's subgraphs, run among the values of the graph around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from pccompile.frontends.onnx.graph import Graph, free_names
from pccompile.frontends.onnx.registry import Node
from pccompile.frontends.onnx.values import Host, Value, as_tensor

if TYPE_CHECKING:
    from pccompile.frontends.onnx.module import OnnxModule


@dataclass(frozen=True)
class Scope:
    """The values that subgraphs see, and the module that runs them."""

    module: OnnxModule
    values: dict[str, Value]

    def __call__(self, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a subgraph."""
        return self.module.execute(graph, {**self.values, **dict(zip(graph.inputs, inputs, strict=True))})

    def guarded(self, node: Node, graph: Graph, chosen: Tensor) -> list[Value]:
        """The outputs of a branch of `node`. What it reads hears of its errors only where it is `chosen`.

        Elsewhere they may be no numbers, and 0 times those is none.
        """
        read = {n: _guarded(self.values[n], chosen) for n in sorted(free_names(node)) if n in self.values}
        kept = [c for g in graph.subgraphs() for c in g.constants.values() if c.kind == "parameter"]
        with self.module.lent({c.path: _learning(self.module.tensor_at(c.path), chosen) for c in kept}):
            return self.module.execute(graph, {**self.values, **read})

    def choose(self, node: Node, condition: Tensor, yes: Graph, no: Graph) -> list[Value] | None:
        """The outputs of the branch that a traced condition chooses, by `torch.cond`; None where that cannot be."""
        read = {n: self.values[n] for n in sorted(free_names(node)) if n in self.values}
        if any(isinstance(v, list) or (isinstance(v, Host) and v.symbolic) for v in read.values()):
            return None
        tensors = {n: t for n, v in read.items() if (t := v.tensor if isinstance(v, Host) else v) is not None}
        paths = sorted({c.path for g in (yes, no) for s in g.subgraphs() for c in s.constants.values() if c.path})
        if not all(isinstance(t, Tensor) for t in tensors.values()):
            return None

        def branch(graph: Graph) -> Callable[..., tuple[Tensor, ...]]:
            def run(*given: Tensor) -> tuple[Tensor, ...]:
                inner: dict[str, Value] = {}
                for name, tensor in zip(tensors, given, strict=False):
                    outer = read[name]
                    inner[name] = replace(outer, tensor=tensor) if isinstance(outer, Host) else tensor
                with self.module.lent(dict(zip(paths, given[len(tensors) :], strict=True))):
                    results = self.module.execute(graph, {**self.values, **inner})
                return tuple(as_tensor(r).clone() for r in results)  # a result must not be an operand

            return run

        operands: tuple[Any, ...] = (*tensors.values(), *(self.module.tensor_at(p) for p in paths))
        return list(torch.ops.higher_order.cond(condition.reshape(()), branch(yes), branch(no), operands))


def _guarded(value: Value, chosen: Tensor) -> Value:
    if isinstance(value, list):
        return [_guarded(v, chosen) for v in value]
    return _learning(value, chosen) if isinstance(value, Tensor) else value


def _learning(tensor: Tensor, chosen: Tensor) -> Tensor:
    """`tensor`, to which an error passes only where it is `chosen`."""
    return torch.where(chosen, tensor, tensor.detach()) if tensor.is_floating_point() else tensor


def constants_traced() -> int | None:
    """How many tensors of more than one number the trace that is going on has met; None where there is no trace."""
    mode = get_proxy_mode()
    if mode is None:
        return None
    root = getattr(mode.tracer, "root", None)
    held = [getattr(root, str(n.target), None) for n in mode.tracer.graph.nodes if n.op == "get_attr"]
    return sum(isinstance(t, Tensor) and t.numel() > 1 for t in held)
