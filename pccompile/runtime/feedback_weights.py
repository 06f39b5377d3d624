"""The weights that messages read in the place of a model's own: tensors of the compiled module, and none of the model.

They have the paths of their weights under one name, `feedback.fc1.weight`, and the dtype and device of these.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.diagnostics import CompileError
from pccompile.ir import Graph
from pccompile.pipeline import Compiled
from pccompile.runtime.model_state import Tables


class FeedbackWeights(nn.Module):
    """Feedback weights as a tree of modules like the one that their weights are in.

    Buffers where they stand still, parameters where they learn.
    """

    def grow(self, compiled: Compiled, tables: Tables) -> None:
        """Make what `compiled` reads and is not there yet, by torch's own random stream. Raises CompileError."""
        graph = compiled.pc.graph
        for leaf, feedback in compiled.pc.feedback.items():
            path, like = _path(graph, leaf), self._like(compiled, tables, leaf)
            there, shape = self.get(path), {**graph.params, **graph.buffers}[leaf].shape
            if there is not None and tuple(there.shape) != tuple(shape):
                what = f"{feedback.of or path} has another shape than its weight {path}, {list(there.shape)}"
                raise CompileError(what, hint="compile the model anew")
            if there is None:
                start = like.detach().clone() if feedback.of and not feedback.drawn else torch.zeros(shape).to(like)
                start = _drawn(like if feedback.of else start, shape) if feedback.drawn else start
                self._put(path, start, leaf in graph.params)

    def tables(self, compiled: Compiled, tables: Tables, mirrored: bool) -> Tables:
        """`tables` with what a program reads of this. mirrored: the weights themselves in the place of theirs."""
        graph, own = compiled.pc.graph, (dict(tables[0]), dict(tables[1]))
        for leaf in compiled.pc.feedback:
            path, like = _path(graph, leaf), self._like(compiled, tables, leaf)
            weight = like.detach() if mirrored else self.get(path)
            assert weight is not None, path
            if weight.dtype != like.dtype or weight.device != like.device:
                weight.data = weight.data.to(like)
            own[leaf not in graph.params][graph.origin[leaf]] = weight
        return own

    @staticmethod
    def _like(compiled: Compiled, tables: Tables, leaf: str) -> Tensor:
        """The parameter that a leaf stands for; for one of its own, some parameter of its type and device."""
        graph, of = compiled.pc.graph, compiled.pc.feedback[leaf].of
        return tables[0][graph.origin[of]] if of else next(iter(tables[0].values()))

    def get(self, path: str) -> Tensor | None:
        """The feedback weight of a parameter; None where there is none."""
        module: Any = self
        *above, name = path.split(".")
        for part in above:
            module = module._modules.get(part)
            if module is None:
                return None
        tensor: Tensor | None = module._parameters.get(name)
        return module._buffers.get(name) if tensor is None else tensor

    def _put(self, path: str, tensor: Tensor, learns: bool) -> None:
        """Written into the tables themselves: a path may have names that a module has attributes of."""
        module: nn.Module = self
        *above, name = path.split(".")
        for part in above:
            module = module._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        if learns:
            module._parameters[name] = nn.Parameter(tensor)
        else:
            module._buffers[name] = tensor


def _path(graph: Graph, leaf: str) -> str:
    """Where a leaf is in the tree."""
    return graph.origin[leaf].partition(".")[2]


def _drawn(weight: Tensor, shape: Sequence[Any]) -> Tensor:
    """Normal numbers with the root mean square of `weight`, or 1/√(fan-in) where that is 0."""
    if weight.is_meta:
        return weight.new_empty(tuple(shape))
    size = float(torch.linalg.vector_norm(weight.detach())) / math.sqrt(max(weight.numel(), 1))
    fan_in = weight[0].numel() if weight.dim() > 1 else weight.numel()
    scale = size or 1 / math.sqrt(max(fan_in, 1))
    kind = torch.complex64 if weight.is_complex() else torch.float32
    return (torch.randn(tuple(shape), dtype=kind) * scale).to(weight)


class JoinedModules(dict[str, Any]):
    """A model's table of submodules with more at its end, which the model does not have. What is set, it has."""

    def __init__(self, table: dict[str, Any], more: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.table, self.more = table, dict(more)

    def _all(self) -> dict[str, Any]:
        return {**self.table, **self.more}

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in self.more

    def __getitem__(self, name: str) -> Any:
        return self.more[name] if name in self.more else self.table[name]

    def __setitem__(self, name: str, module: Any) -> None:
        self.table[name] = module

    def __delitem__(self, name: str) -> None:
        del self.table[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The module of that name."""
        return self._all().get(name, default)

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """All names."""
        return self._all().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """All modules."""
        return self._all().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """All modules by name."""
        return self._all().items()


def unused(name: str, model: nn.Module) -> str:
    """`name`, or with a number behind it where `model` has that at its top."""
    tables: tuple[Mapping[str, Any], ...] = (model._modules, model._parameters, model._buffers)
    taken = {k for table in tables for k in table} | {k for k in vars(model) if not k.startswith("_")}
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    return free
