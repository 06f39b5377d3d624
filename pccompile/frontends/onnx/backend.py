"""The backend interface of the ONNX project: `import pccompile.onnx_backend as backend`, `backend.run_model(…)`.

A model runs as the module that `load_onnx` makes of it, one torch operation after the other and without gradients, on
the CPU. `pccompile.compile` starts from the same module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from pccompile.diagnostics import CompileError
from pccompile.frontends.onnx import OnnxModule, load_onnx
from pccompile.frontends.onnx.boundary import from_numpy, to_numpy
from pccompile.frontends.onnx.names import lookup


class Prepared(BackendRep):
    """A loaded model; `module` is its trainable module."""

    def __init__(self, module: OnnxModule, names: Sequence[str]) -> None:
        self.module = module
        self.names = tuple(names)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs as numpy arrays (lists for sequences, None for absent ones), also under their names.

        inputs: one for each input of the graph in its order, with or without those that have an initializer, or a
        mapping from their names; numpy arrays, lists for sequences, None for absent ones. Raises CompileError.
        """
        given = self._named(inputs)
        wanted = [t.name for t in self.module.input_types]
        absent = [name for name in wanted if name not in given]
        if absent:
            raise CompileError(f"input {absent[0]} is missing")
        for name in given.keys() - set(wanted):
            self._check_initializer(name, given[name])
        with torch.no_grad():
            results = self.module(*(from_numpy(given[t.name]) for t in self.module.input_types))
        outputs = [to_numpy(r) for r in (results if isinstance(results, tuple) else (results,))]
        made: tuple[Any, ...] = namedtupledict("Outputs", self.module.output_names)(*outputs)
        return made

    def _check_initializer(self, name: str, value: Any) -> None:
        """Raise CompileError unless `value` is what the initializer called `name` holds."""
        constant = self.module.graph.constants.get(name)
        if constant is None:
            raise CompileError(f"there is no input {name}")
        held = to_numpy(lookup(self.module, constant.path)) if constant.path else constant.array
        if not np.array_equal(np.asarray(to_numpy(from_numpy(value))), held, equal_nan=held.dtype.kind in "fc"):
            hint = "change the initializer, or take it out of the file"
            raise CompileError(f"input {name} has an initializer of other numbers", hint=hint)

    def _named(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        values = list(inputs) if isinstance(inputs, Sequence) else [inputs]
        wanted = [t.name for t in self.module.input_types]
        names = wanted if len(values) == len(wanted) else self.names
        if len(values) > len(names):
            raise CompileError(f"the model takes {len(wanted)} inputs, {len(values)} are given")
        return dict(zip(names, values, strict=False))


class PredictiveCodingBackend(Backend):
    """Runs ONNX models with torch."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """`model`, loaded. Raises CompileError with everything that is wrong."""
        if not cls.supports_device(device):
            raise CompileError(f"models run on the CPU here, not on {device}")
        return Prepared(load_onnx(model), [i.name for i in model.graph.input])

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of `model` for `inputs`, once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The outputs of one node for its inputs, each name once; `opset_version` chooses the operator set."""
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        arrays = [to_numpy(from_numpy(i)) for i in inputs]
        names = [n for n in dict.fromkeys(node.input) if n]
        graph = onnx.helper.make_graph(
            [node],
            node.name or node.op_type,
            [declared(name, array) for name, array in zip(names, arrays, strict=True)],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        opsets = [onnx.helper.make_opsetid("", version)]
        if node.domain not in ("", "ai.onnx"):
            opsets.append(onnx.helper.make_opsetid(node.domain, kwargs.get("domain_version", 1)))
        return cls.run_model(onnx.helper.make_model(graph, opset_imports=opsets), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models can run on `device`: on the CPU only."""
        return bool(Device(device).type == DeviceType.CPU)


def declared(name: str, array: Any) -> onnx.ValueInfoProto:
    """The type of an input of this value. Raises CompileError where it is not an array."""
    if not hasattr(array, "dtype"):
        raise CompileError(f"input {name} should be an array, it is a {type(array).__name__}")
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, code, array.shape)


prepare = PredictiveCodingBackend.prepare
run_model = PredictiveCodingBackend.run_model
run_node = PredictiveCodingBackend.run_node
supports_device = PredictiveCodingBackend.supports_device
is_compatible = PredictiveCodingBackend.is_compatible
