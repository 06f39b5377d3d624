"""Runs an ONNX graph with torch, one small function per operator."""

from __future__ import annotations

import inspect
import keyword
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
import torch.fx.traceback
from torch import Tensor, nn

from pccompile.diagnostics import CompileError, Location, Problem
from pccompile.frontends.onnx.graph import Constant, OnnxGraph, with_floats
from pccompile.frontends.onnx.input_types import InputType, describe, mismatches
from pccompile.frontends.onnx.names import attach, distinct, lookup, parameter_paths
from pccompile.frontends.onnx.registry import Node, find, host_result
from pccompile.frontends.onnx.scope import Scope
from pccompile.frontends.onnx.standins import computed
from pccompile.frontends.onnx.tensors import first_line
from pccompile.frontends.onnx.values import (
    HOST_LIMIT,
    TEXT,
    Host,
    LowPrecision,
    StringArray,
    Value,
    described,
    host_of,
    tensor_of,
    text_of,
)
from pccompile.limits import account


class Runner(nn.Module):
    """Runs an ONNX graph; its weights are parameters under the names that the file gives them.

    `parameter_names` maps the initializers' names to the parameters' paths: equal, save for names that cannot be paths.
    `replaced` holds numbers that the user gave for initializers.
    `stored` is how many bytes of weights the file holds; what it may ask for grows with it.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        input_types: Sequence[InputType],
        fixed: Mapping[str, Value] | None = None,
        stored: int = 0,
    ) -> None:
        super().__init__()
        self.input_types = tuple(input_types)
        self.output_names = graph.outputs
        self.parameter_names: dict[str, str] = {}
        self.graph = graph
        self.stored = stored
        self._fixed = dict(fixed or {})
        self.replaced: Mapping[str, Any] = {}
        self._overrides: dict[str, Tensor] = {}
        self._install_constants()
        self._install_signature()

    def _install_constants(self) -> None:
        kept = [c for g in self.graph.subgraphs() for c in g.constants.values() if c.kind != "host"]
        names = distinct([c.name for c in kept])
        paths = parameter_paths(names, self)
        for name, constant in zip(names, kept, strict=True):
            constant.path = paths[name]
            attach(self, constant.path, tensor_of(constant.array, constant.dtype), constant.kind == "parameter")
            if constant.kind == "parameter":
                self.parameter_names[name] = constant.path
            if constant.kind == "parameter" or constant.array.size > HOST_LIMIT:
                constant.array = np.empty(0)

    def _install_signature(self) -> None:
        """Give `forward` the graph's inputs as its named arguments, which torch.export names its placeholders after."""

        def forward(self: Runner, *inputs: Any, **named: Any) -> Any:
            return self.run(*inputs, **named)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        arguments = [inspect.Parameter(name, kind) for name in ("self", *self._argument_names())]
        forward.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
        self.__dict__["forward"] = types.MethodType(forward, self)

    def _argument_names(self) -> list[str]:
        names: list[str] = []
        for index, entry in enumerate(self.input_types):
            name = entry.name
            fits = (
                name.isidentifier() and not keyword.iskeyword(name) and name.isascii() and name not in ("self", *names)
            )
            names.append(name if fits else f"input_{index}")
        return names if len(set(names)) == len(names) else [f"input_{i}" for i in range(len(names))]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._install_signature()

    def run(self, *inputs: Any, **named: Any) -> Any:
        """The graph's outputs: one tensor, or a tuple where there are several.

        Text comes and goes as numpy arrays of strings, sequences as lists, absent optional values as None.
        """
        values: dict[str, Value] = {**self._fixed, **self._bind(inputs, named)}
        with account(self.stored), torch.fx.traceback.preserve_node_meta():
            results = [as_output(v) for v in self.execute(self.graph, values)]
        return results[0] if len(results) == 1 else tuple(results)

    def double(self) -> Self:
        """Turn parameters, buffers, constants and inputs into float64, where they are floating-point numbers."""
        super().double()
        with_floats(self.graph, torch.float64)
        self._fixed = {
            n: v.to(torch.float64) if isinstance(v, Host) and v.dtype.is_floating_point else v
            for n, v in self._fixed.items()
        }
        self.input_types = tuple(
            replace(t, dtype=torch.float64) if t.form == "tensor" and t.dtype.is_floating_point else t
            for t in self.input_types
        )
        return self

    def _bind(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Value]:
        names = self._argument_names()
        problems: list[Problem] = []
        if len(inputs) > len(names):
            problems.append(Problem(f"the model takes {len(names)} inputs, {len(inputs)} are given"))
        given = dict(zip(names, inputs, strict=False))
        for name, value in named.items():
            if name not in names or name in given:
                problems.append(
                    Problem(f"input {name} is {'given twice' if name in given else 'not one of the model'}")
                )
            given[name] = value
        bound: dict[str, Value] = {}
        for name, entry in zip(names, self.input_types, strict=True):
            if name not in given:
                problems.append(Problem(f"input {entry.name} is missing: {describe(entry)}"))
                continue
            value = as_input(given[name])
            problems.extend(mismatches(entry, value))
            bound[entry.name] = value
        if problems:
            raise CompileError(problems)
        return bound

    def execute(self, graph: OnnxGraph, values: dict[str, Value]) -> list[Value]:
        """The outputs of `graph`, given the values that it and its subgraphs read."""
        for constant in graph.constants.values():
            values[constant.name] = self._constant(constant)
        for node, finished in zip(graph.nodes, graph.last_reads, strict=True):
            with torch.fx.traceback.annotate(node.annotation):
                results = self._run_node(node, values)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = value
            if graph is self.graph:
                for name in finished:
                    values.pop(name, None)
        return [values[name] for name in graph.outputs]

    @property
    def fixed_inputs(self) -> Mapping[str, Value]:
        """The inputs that were fixed to numbers, by name."""
        return dict(self._fixed)

    @property
    def formula_constants(self) -> dict[str, float]:
        """Single numbers among the initializers that are part of formulas and do not learn, by name."""
        constants = [c for g in self.graph.subgraphs() for c in g.constants.values()]
        return {c.name: float(c.array.reshape(-1)[0]) for c in constants if c.formula and c.array.size == 1}

    @contextmanager
    def override_tensors(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within: other tensors stand at these paths, as in a branch that is given its weights."""
        before, self._overrides = self._overrides, {**self._overrides, **tensors}
        try:
            yield
        finally:
            self._overrides = before

    def tensor_at(self, path: str) -> Tensor:
        """The tensor at `path`, or what stands in for it."""
        return self._overrides[path] if path in self._overrides else lookup(self, path)

    def _constant(self, constant: Constant) -> Value:
        tensor = self.tensor_at(constant.path) if constant.path else None
        if constant.code == TEXT:
            return StringArray(constant.array)
        if constant.code:
            return LowPrecision(tensor_of(constant.array, constant.dtype) if tensor is None else tensor, constant.code)
        known = tensor is None or (constant.kind == "buffer" and constant.array.size == tensor.numel())
        return Host(constant.array, constant.dtype, tensor) if known else tensor

    def _run_node(self, node: Node, values: dict[str, Value]) -> list[Value]:
        """The outputs of one node; whatever goes wrong names the node."""
        arguments = [values[name] if name else None for name in node.inputs]
        while arguments and arguments[-1] is None and not node.inputs[len(arguments) - 1]:
            arguments.pop()

        try:
            known = host_result(node, arguments)
            if known is not None:
                return known
            operator = find(node.domain, node.op_type)
            if operator is None:
                raise CompileError(f"no rule for {node.op_type}")
            return outputs_of(computed(node, operator, arguments, Scope(self, values)), scalar_type(node, arguments))
        except CompileError as error:
            raise type(error)([located(p, node) for p in error.problems]) from None
        except Exception as error:
            shapes = ", ".join(described(a) for a in arguments)
            raise CompileError(f"{node.op_type} of {shapes} fails: {first_line(error)}", where(node)) from error


def scalar_type(node: Node, arguments: Sequence[Value]) -> torch.dtype:
    """The type of a number that `node` makes of numbers."""
    types = [a.dtype for a in arguments if isinstance(a, (Host, Tensor)) and a.dtype.is_floating_point]
    return types[0] if types else node.single


def outputs_of(result: Any, scalar: torch.dtype) -> list[Value]:
    """What an operator's function returned, as a list of outputs; single numbers become of type `scalar`."""
    if isinstance(result, (int, float)):
        return [host_of(result, scalar)]
    return list(result) if isinstance(result, (tuple, list)) else [result]


def where(node: Node) -> Location:
    """The node's place, which errors show: its name, and its source line where known."""
    place = node.location
    return place if place.file else Location(f"{node.op_type} {node.name}")


def located(problem: Problem, node: Node) -> Problem:
    """The problem, placed at the node unless it has a place already."""
    return problem if str(problem.where) else Problem(problem.what, where(node), problem.hint)


def as_output(value: Value) -> Any:
    """An output for the caller: tensors, arrays of strings, lists for sequences, None for what is absent."""
    match value:
        case Host():
            return value.as_tensor()
        case StringArray():
            return value.array
        case list():
            return [as_output(v) for v in value]
    return value


def as_input(value: Any) -> Any:
    """What a caller gave as the graph reads it."""
    return text_of(value) if isinstance(value, np.ndarray) and value.dtype.kind in "OUST" else value


def location_of(node: torch.fx.Node) -> Location | None:
    """Where in the ONNX file, or in the source it was exported from, a traced operation comes from."""
    note = (node.meta.get("custom") or {}).get("onnx")
    return Location(note["module"], note["file"], note["line"]) if note else None
