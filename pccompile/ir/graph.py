"""The operation graph: what a model computes, in ATen operations and single assignment.

Everything refers to everything else by name, so that a printed graph is complete and its diffs are stable. A graph is
frozen; a pass returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy
import torch

from pccompile.diagnostics import NOWHERE, CompileError, Location

Dim: TypeAlias = int | sympy.Expr
"""A length: a number, or an expression over the names in `Graph.dims`."""


class Ref(str):
    """The name of a value, as opposed to a string argument."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"%{self}"


class _Device:
    """The device that the program runs on, known only when it runs."""

    def __repr__(self) -> str:
        return "device"


DEVICE = _Device()
Arg: TypeAlias = Any
"""Ref, Dim, bool, float, str, None, torch.dtype, DEVICE, or a tuple of these."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of one tensor."""

    shape: tuple[Dim, ...]
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"

    @property
    def differentiable(self) -> bool:
        """Whether a value of this type can carry an error."""
        return self.dtype.is_floating_point or self.dtype.is_complex


Type = TensorType | tuple["TensorType | None", ...]


@dataclass(frozen=True, slots=True)
class Node:
    """`name = op(args)`: one operation. `args` has every argument of the operator's schema, by name.

    A node with several results has a tuple of types; they are read through `getitem` nodes.
    """

    name: str
    op: str
    args: Mapping[str, Arg]
    type: Type
    where: Location = NOWHERE

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """The values that this node reads, in the order of its arguments, with repeats."""
        return tuple(refs(self.args.values()))

    def __str__(self) -> str:
        kinds = self.type if isinstance(self.type, tuple) else (self.type,)
        args = ", ".join(f"{k}={_text(v)}" for k, v in self.args.items() if v is not None)
        return f"%{self.name}: {' '.join(map(str, kinds))} = {self.op}({args})"

    def __getitem__(self, name: str) -> Arg:
        return self.args[name]

    @property
    def tensor(self) -> TensorType:
        """The type of a node that has a single result."""
        assert isinstance(self.type, TensorType), self
        return self.type


def _text(arg: Arg) -> str:
    if isinstance(arg, tuple):
        return f"[{', '.join(map(_text, arg))}]"
    return f"%{arg}" if isinstance(arg, Ref) else str(arg).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a free dimension is read at run time: axis `axis` of the tensor called `tensor`."""

    tensor: str
    axis: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A directed acyclic graph of operations, in topological order.

    params and buffers are keyed by identifier; `origin` gives each its path in the model. `updates` names the values
    that are written into buffers after a forward pass, `states` those that take a buffer's place, by the path of the
    buffer. `wanted` are the parameters, buffers and inputs whose gradient is wanted. The last `further` of the outputs
    are no results of the model, but what it writes elsewhere.
    """

    inputs: Mapping[str, TensorType]
    params: Mapping[str, TensorType]
    buffers: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    origin: Mapping[str, str] = field(default_factory=dict)
    updates: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, Source] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    states: Mapping[str, str] = field(default_factory=dict)
    further: int = 0

    @property
    def leaves(self) -> dict[str, TensorType]:
        """Inputs, parameters and buffers together."""
        return {**self.inputs, **self.params, **self.buffers}

    @property
    def types(self) -> dict[str, Type]:
        """The type of every value."""
        return {**self.leaves, **{n.name: n.type for n in self.nodes}}

    def __str__(self) -> str:
        tables = (("input", self.inputs), ("param", self.params), ("buffer", self.buffers))
        head = [f"  {kind} %{k}: {t}" for kind, table in tables for k, t in table.items()]
        body = [f"  {n}" for n in self.nodes]
        tail = [f"  update %{b} = %{v}" for b, v in self.updates.items()]
        return "\n".join(["graph {", *head, *body, *tail, f"  return {', '.join('%' + o for o in self.outputs)}", "}"])


def refs(args: Iterable[Arg]) -> Iterator[Ref]:
    """The names read in `args`, through tuples."""
    for a in args:
        if isinstance(a, Ref):
            yield a
        elif isinstance(a, tuple):
            yield from refs(a)


def map_refs(arg: Arg, rename: Callable[[Ref], Arg]) -> Arg:
    """`arg` with each name in it replaced."""
    if isinstance(arg, Ref):
        return rename(arg)
    return tuple(map_refs(a, rename) for a in arg) if isinstance(arg, tuple) else arg


def live(
    nodes: Iterable[Node], roots: Iterable[str], also: Callable[[Node], Iterable[str]] = lambda n: ()
) -> tuple[Node, ...]:
    """The nodes that `roots` need, in order. also(node): what a node needs besides its inputs."""
    need, keep = set(roots), []
    for n in reversed(tuple(nodes)):
        if n.name in need:
            keep.append(n)
            need.update(n.inputs)
            need.update(also(n))
    return tuple(reversed(keep))


def verify(graph: Graph) -> Graph:
    """`graph`, once checked: single assignment, definition before use, and outputs that exist.

    Raises CompileError at the first violation.
    """
    seen = set(graph.leaves)
    if len(seen) < len(graph.inputs) + len(graph.params) + len(graph.buffers):
        raise CompileError("an input, a parameter and a buffer share a name")
    for n in graph.nodes:
        if n.name in seen:
            raise CompileError(f"value %{n.name} is defined twice", n.where)
        for i in n.inputs:
            if i not in seen:
                raise CompileError(f"%{n.name} reads %{i} before it is defined", n.where)
        seen.add(n.name)
    if unnamed := [name for name in graph.leaves if name in graph.dims]:
        raise CompileError(f"%{unnamed[0]} is the name of a length, too")
    if len(set(graph.origin.values())) < len(graph.origin):
        raise CompileError("two parameters or buffers have one path")
    for o in (*graph.outputs, *graph.updates.values()):
        if o not in seen:
            raise CompileError(f"output %{o} is not defined")
    return graph
