"""The tensors that an exported program holds: each once, under a name in the graph and a path that nothing else has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from pccompile.ir.names import Namer


class ModelTensors:
    """Parameters, buffers and constants by name, with their paths. `constants` are those that the model does not have.

    What the model has goes by its path there; a constant whose path in the program the model uses gets another.
    """

    def __init__(self, program: ExportedProgram, model: nn.Module | None, namer: Namer) -> None:
        self.program, self.model, self.namer = program, model, namer
        self.tensors: dict[str, torch.Tensor] = {}
        self.origin: dict[str, str] = {}
        self.constants: set[str] = set()
        self._names: dict[object, str] = {}
        specs = program.graph_signature.input_specs
        self._paths = {s.target for s in specs if s.kind in (InputKind.PARAMETER, InputKind.BUFFER) and s.target}

    def enter(self, path: str, tensor: torch.Tensor, owned: bool, alone: bool = False) -> tuple[str, bool]:
        """The name of a tensor, and whether it is new: one tensor may arrive under several paths.

        owned: the model has it under this path. alone: it is another one than those that merely lie in its memory.
        """
        places = (id(tensor),) if alone else (id(tensor), _place(tensor))
        known = next((self._names[p] for p in places if p in self._names), None)
        if known is not None:
            return known, False
        name = self.namer(path)
        for place in (id(tensor), _place(tensor)):
            self._names.setdefault(place, name)
        if not owned:
            self.constants.add(name)
            path = self._own_path(path)
        self._paths.add(path)
        self.tensors[name], self.origin[name] = tensor, path
        return name, True

    def _own_path(self, path: str) -> str:
        """`path`, with a number where the model or another constant has it."""
        numbered = (f"{path}{f'_{i}' if i else ''}" for i in itertools.count())
        return next(p for p in numbered if p not in self._paths and not self._of_the_model(p))

    def _of_the_model(self, path: str) -> bool:
        return self.model is not None and tensor_at(self.model, path) is not None

    def overlaps(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Pairs of paths: of a tensor among `names`, and of another one that lies in the same memory."""
        memory: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            if tensor.layout is torch.strided and tensor.numel():
                memory.setdefault(tensor.untyped_storage()._cdata, []).append(name)
        for together in memory.values():
            for name in set(names).intersection(together) if len(together) > 1 else ():
                yield self.origin[name], self.origin[next(n for n in together if n != name)]

    def owned(self, spec: Any) -> tuple[torch.Tensor, bool]:
        """The model's own tensor for a parameter, a buffer or an attribute, and whether it is that; else a constant."""
        table = self.program.state_dict if spec.target in self.program.state_dict else self.program.constants
        own = tensor_at(self.model, spec.target) if self.model is not None else None
        constant = table.get(spec.target)
        if own is not None and (spec.kind != InputKind.CONSTANT_TENSOR or _is_one(own, constant)):
            return own, True
        assert isinstance(constant, torch.Tensor)
        return constant, False


def tensor_at(model: nn.Module, path: str) -> torch.Tensor | None:
    """The parameter, buffer or plain attribute that stands at `path` now; None where there is no tensor."""
    *owners, name = path.split(".")
    for part in owners:
        child = model._modules.get(part)
        if child is None:
            return None
        model = child
    tables = (model._parameters, model._buffers, model.__dict__)
    value = next((t[name] for t in tables if t.get(name) is not None), None)
    return value if isinstance(value, torch.Tensor) else None


def _is_one(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    return a is b or (b is not None and _place(a) == _place(b))


def _place(tensor: torch.Tensor) -> object:
    """What is the same of two tensors where they are one in memory."""
    try:
        place = tensor.data_ptr()
        if place:
            return place, tensor.untyped_storage().data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except (RuntimeError, NotImplementedError):
        pass
    return id(tensor)
