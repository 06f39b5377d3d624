"""What the compiled model yields on the ONNX project's cases, by the project's runner."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
import torch

import pccompile
from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import load_onnx
from pccompile.frontends.onnx.boundary import from_numpy, to_numpy
from pccompile.frontends.onnx.values import DTYPES
from pccompile.onnx_backend import PredictiveCodingBackend, Prepared
from suites.onnx_forward import Items, cases, model_of, outcome
from suites.onnx_gradients import FLOATS, formal
from suites.rows import Row

KIND = "compiled"


class Compiled(Prepared):
    """A model that is compiled for the inputs of its first call, those that decide its form being fixed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(load_onnx(model), [i.name for i in model.graph.input])
        self.model, self.fixed = model, formal(model) & {t.name for t in self.module.input_types}

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of the compiled prediction."""
        given = {n: from_numpy(v) for n, v in self._named(inputs).items()}
        integers = {t.name for t in self.module.input_types if not t.dtype.is_floating_point}
        for fixed in (self.fixed, self.fixed | integers):
            module = load_onnx(self.model, constants={n: given[n] for n in fixed})
            arguments = [given[t.name] for t in module.input_types]
            arguments = [a.requires_grad_(a.is_floating_point()) for a in arguments]
            try:
                with torch.enable_grad():
                    results = pccompile.compile(module, tuple(arguments))(*arguments)
                break
            except CompileError as error:
                if fixed >= integers or "depends on the data" not in str(error):
                    raise
        return tuple(to_numpy(r) for r in (results if isinstance(results, tuple) else (results,)))


class Backend(PredictiveCodingBackend):
    """Runs models compiled."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Compiled:
        """`model`, to be compiled at its first call."""
        return Compiled(model)


ITEMS = Items(Backend)


@cache
def judged() -> Mapping[str, None]:
    """The cases all of whose inputs are tensors of numbers, with floats among the inputs and the outputs."""
    return {n: None for n in cases() if takes_part(model_of(n).graph)}


def takes_part(graph: onnx.GraphProto) -> bool:
    """Whether a graph may carry a gradient from its inputs to its outputs."""
    held = {t.name for t in graph.initializer}
    inputs = [i.type for i in graph.input if i.name not in held]
    plain = all(t.HasField("tensor_type") and t.tensor_type.elem_type in DTYPES for t in inputs)
    floats = [any(e.type.tensor_type.elem_type in FLOATS for e in side) for side in (graph.input, graph.output)]
    return plain and all(floats)


def compiled(name: str) -> list[Row]:
    """The row of one case, or none where it has nothing to compile."""
    return [outcome(name, KIND, ITEMS)] if name in judged() else []
