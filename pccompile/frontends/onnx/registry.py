"""The table of operators: one small function each, found by domain and type.

A function's annotations say where each argument has to live, so that nothing else has to list it:

- `Tensor`: a tensor; numbers known on the host are turned into one.
- `Operand`: a tensor, or a Python number where it is a known scalar.
- `Host`: numbers that must be known while tracing (shapes, axes, scales). A float initializer that only such
  arguments read is a constant, not a parameter.
- `Value`: whatever comes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pccompile.diagnostics import NOWHERE, CompileError, Location
from pccompile.frontends.onnx.values import DTYPES, Host, Value, as_host, as_operand, as_tensor, host_of


@dataclass(frozen=True, slots=True)
class Node:
    """One ONNX node: what it is called, its attributes as Python values, and the edges it reads and writes.

    single: the type in which what ONNX calls float32 is computed here.
    """

    name: str
    op_type: str
    domain: str = ""
    opset: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    location: Location = NOWHERE
    single: torch.dtype = torch.float32

    @property
    def annotation(self) -> dict[str, dict[str, Any]]:
        """What is attached to every traced operation of this node, under the key `onnx`."""
        place = self.location
        known = {
            "name": self.name,
            "op_type": self.op_type,
            "module": place.module,
            "file": place.file,
            "line": place.line,
        }
        return {"onnx": known}

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` where the node does not have it."""
        return self.attributes.get(name, default)

    def element_type(self, name: str) -> torch.dtype:
        """The type that attribute `name` says; that of float32 where the node does not have it."""
        return DTYPES[self.attributes[name]] if name in self.attributes else self.single

    def wants(self, index: int) -> bool:
        """Whether somebody reads output `index`."""
        return index < len(self.outputs) and self.outputs[index] != ""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator's function and what it says about its arguments."""

    function: Callable[..., Any]
    kinds: tuple[str, ...]
    variadic: str
    weights: frozenset[int]
    statistics: frozenset[int]
    control: bool = False

    def kind(self, index: int) -> str:
        """Where argument `index` lives: `Tensor`, `Operand`, `Host` or `Value`."""
        return self.kinds[index] if index < len(self.kinds) else self.variadic

    def __call__(self, node: Node, values: list[Value], run: Callable[..., list[Value]]) -> Any:
        """What the function returns for `values`, each brought to where its annotation wants it."""
        if len(values) > len(self.kinds) and not self.variadic:
            raise CompileError(f"{node.op_type} takes at most {len(self.kinds)} inputs, {len(values)} are given")
        rank = max((v.dim() for v in values if isinstance(v, Tensor)), default=0)
        arguments = [self.coerce(node, i, v, rank) for i, v in enumerate(values)]
        return self.function(node, run, *arguments) if self.control else self.function(node, *arguments)

    def coerce(self, node: Node, index: int, value: Value, rank: int) -> Any:
        """`value` as its annotation wants it, beside tensors of at most `rank` axes."""
        if value is None:
            return None
        match self.kind(index):
            case "Tensor":
                return as_tensor(value)
            case "Operand":
                return as_operand(value, rank)
            case "Host":
                return as_host(value, f"input {index} of {node.op_type}")
        return value


HostRule = Callable[..., "np.ndarray[Any, Any] | Host | list[Host] | None"]
OPERATORS: dict[tuple[str, str], Operator] = {}
HOST_RULES: dict[str, HostRule] = {}
KINDS = ("Tensor", "Operand", "Host", "Value")


def operator(
    *names: str,
    domain: str = "",
    weights: tuple[int, ...] = (),
    statistics: tuple[int, ...] = (),
    control: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that enters a function for the operators called `names`.

    Inputs listed in `weights` are learnable even where a file holds them as constants; those in `statistics` never are.
    A `control` operator is also given a function that runs its subgraphs.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(function).parameters.values())[2 if control else 1 :]
        kinds, variadic = [], ""
        for parameter in parameters:
            annotation = parameter.annotation
            text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
            kind = text.split("|")[0].strip().rpartition(".")[-1]
            if kind not in KINDS:
                raise TypeError(f"{names[0]}: {parameter.name} is annotated {kind}, not one of {KINDS}")
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                variadic = kind
            else:
                kinds.append(kind)
        for name in names:
            OPERATORS[domain, name] = Operator(
                function, tuple(kinds), variadic, frozenset(weights), frozenset(statistics), control
            )
        return function

    return enter


def host_rule(*names: str) -> Callable[[HostRule], HostRule]:
    """A decorator that enters what an operator does with numbers on the host; None means: use tensors."""

    def enter(function: HostRule) -> HostRule:
        for name in names:
            HOST_RULES[name] = function
        return function

    return enter


def find(domain: str, op_type: str) -> Operator | None:
    """The operator's entry; `ai.onnx` is the empty domain."""
    return OPERATORS.get(("" if domain == "ai.onnx" else domain, op_type))


def host_result(node: Node, values: list[Value]) -> list[Value] | None:
    """What `node` yields when all its inputs are known on the host, or None where tensors have to do it."""
    rule = HOST_RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return None
    hosts = [v for v in values if isinstance(v, Host)]
    if len(hosts) != sum(v is not None for v in values):
        return None
    result = rule(node, *(v if isinstance(v, Host) else None for v in values))
    if result is None:
        return None
    if isinstance(result, Host):
        return [result]
    if isinstance(result, list):
        return list(result)
    return [host_of(result, hosts[0].dtype)]
