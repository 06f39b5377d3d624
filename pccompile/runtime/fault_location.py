"""Where a program goes wrong: each vertex's value and error against autograd on the model's captured operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor

from pccompile.analysis.compare import difference
from pccompile.backends.torch import emit
from pccompile.ir import Arg, Fragment, Graph, Node, PCGraph, TensorType, Vertex
from pccompile.ops.interpret import interpret
from pccompile.pipeline import Compiled, Options, schedule
from pccompile.runtime.loaded_program import load
from pccompile.runtime.trial_run import Draws

WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    torch.complex64: torch.complex128,
}
TOLERANCE = 1e-7
"""In float64, what is further apart than this is no rounding."""


@dataclass(frozen=True)
class Fault:
    """The first place where a program differs: in what ("value", "error" or "message"), at which vertex, how much."""

    what: str
    vertex: Vertex
    relative_error: float
    to: str = ""

    def __str__(self) -> str:
        if self.what == "message":
            return f"all errors agree, and what vertex {self.vertex.name} sends to {self.to} does not"
        return f"the first vertex whose {self.what} differs is {self.vertex.name}, by {self.relative_error:.2g}"


def first_fault(
    compiled: Compiled, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Fault | None:
    """The first fault of a program in float64; None where it has none. Raises whatever an operation raises in torch.

    Values are compared in the order of prediction, then errors from the outputs backwards, then parameters' messages.
    """
    wide = _Widener()
    pc = wide.pc(compiled.pc)
    own, state, given = ({k: _wide(t) for k, t in table.items()} for table in (params, buffers, inputs))
    source = emit(schedule(pc, Options("exact")), record=True)
    functions = load(source.text, "self-check")
    shown: dict[str, dict[str, Tensor]] = {}
    with Draws():
        outputs, context = functions["predict"](own, {k: b.clone() for k, b in state.items()}, given, shown.update)
    generator = torch.Generator().manual_seed(0)
    sent = [_normal(outputs[i], generator) for i in source.errors]
    values: dict[str, Tensor] = {}
    expected: dict[str, Tensor | None] = {}
    for graph in _references(compiled):
        named, results = reference_values(wide.graph(graph), own, state, given)
        values |= named
        differentiable = {k: v for k, v in named.items() if v.requires_grad}
        carrying = [(results[i], e) for i, e in zip(source.errors, sent, strict=True) if results[i].requires_grad]
        tensors, grads = zip(*carrying, strict=True)
        found = torch.autograd.grad(tensors, list(differentiable.values()), grads, allow_unused=True)
        expected |= zip(differentiable, found, strict=True)
    for v in pc.vertices:
        if v.name in values and (off := _off(shown["prediction"][v.name], values[v.name])):
            return Fault("value", v, off)
    errors = functions["infer"](own, context, [-e for e in sent])
    for v in reversed(pc.vertices):
        reference = expected.get(v.name)
        if v.name in pc.clamped or errors.get(v.name) is None or reference is None:
            continue
        if off := _off(errors[v.name], -reference):
            return Fault("error", v, off)
    learned = functions["learn"](own, context, errors)
    return _wrong_message(pc, {g.name: learned[g.key] for g in source.gradients}, expected)


def _wrong_message(pc: PCGraph, learned: Mapping[str, Tensor], expected: Mapping[str, Tensor | None]) -> Fault | None:
    """The first parameter, from the outputs backwards, whose gradient is wrong though all errors are right."""
    order = {v.name: i for i, v in enumerate(pc.vertices)}
    wrong: list[tuple[int, Fault]] = []
    for name, path in ((n, pc.graph.origin[n]) for n in pc.graph.params):
        found, reference, readers = learned.get(name), expected.get(name), _readers(pc, name)
        if not readers or (found is None and reference is None):
            continue
        off = 1.0 if found is None or reference is None else _off(found, reference)
        if off:
            wrong.append((order[readers[-1].name], Fault("message", readers[-1], off, path)))
    return max(wrong, key=lambda w: w[0])[1] if wrong else None


def _readers(pc: PCGraph, name: str) -> list[Vertex]:
    return [v for v in pc.vertices if name in v.parents]


def _references(compiled: Compiled) -> list[Graph]:
    """The graphs that autograd can follow: that of the passes, which has all vertices, and the captured one over it."""
    graphs = [replace(compiled.graph, wanted=compiled.pc.graph.wanted), compiled.imported.graph]
    alone = {n.op for g in graphs for n in g.nodes if n.op.startswith("pcc.")}
    return [g for g in graphs if not alone.intersection(n.op for n in g.nodes)] or graphs[1:]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def reference_values(
    graph: Graph, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Every tensor of `graph` by name, and its outputs, computed by torch as autograd follows them."""
    values: dict[str, Any] = {}
    for table, names in ((params, graph.params), (buffers, graph.buffers)):
        values |= {n: table[graph.origin[n]].detach().clone() for n in names}
    values |= {n: inputs[n].detach().clone() for n in graph.inputs}
    for name in graph.wanted:
        values[name].requires_grad_()
    sizes: dict[str, int] = {}
    with torch.enable_grad(), Draws():
        for node in (None, *graph.nodes):
            if node is not None:
                values[node.name] = _own(interpret(_sized(node, sizes), values))
            for d, s in graph.dims.items():
                if d not in sizes and isinstance(values.get(s.tensor), Tensor):
                    sizes[d] = values[s.tensor].shape[s.axis]
    return {k: v for k, v in values.items() if isinstance(v, Tensor)}, [values[o] for o in graph.outputs]


def _own(value: Any) -> Any:
    """A tensor of its own for the result of an operation that returns its argument."""
    return value.view_as(value) if isinstance(value, Tensor) and value.layout is torch.strided else value


def _sized(node: Node, sizes: Mapping[str, int]) -> Node:
    """`node` with numbers in place of lengths."""

    def number(arg: Arg) -> Arg:
        if isinstance(arg, tuple):
            return tuple(map(number, arg))
        if isinstance(arg, sympy.Expr):
            value = arg.subs({s: sizes[str(s)] for s in arg.free_symbols})
            return int(value) if value.is_Integer else float(value)
        return arg

    return replace(node, args={k: number(a) for k, a in node.args.items()})


def _off(found: Tensor, expected: Tensor) -> float:
    """The relative difference, 0 where it is rounding."""
    d = difference("", found, expected)
    return d.relative_error if d.relative_error > TOLERANCE and d.max_abs > TOLERANCE * 1e-3 else 0.0


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(WIDE.get(tensor.dtype, tensor.dtype))


class _Widener:
    """Programs in float64 where they were in less."""

    def __init__(self) -> None:
        self.fragments: dict[int, Fragment] = {}

    def arg(self, arg: Any) -> Any:
        """An argument, or a type."""
        if isinstance(arg, torch.dtype):
            return WIDE.get(arg, arg)
        if isinstance(arg, TensorType):
            return replace(arg, dtype=WIDE.get(arg.dtype, arg.dtype))
        if isinstance(arg, Fragment):
            if id(arg) not in self.fragments:
                parameters = {k: self.arg(t) for k, t in arg.parameters.items()}
                self.fragments[id(arg)] = replace(arg, parameters=parameters, nodes=self.nodes(arg.nodes))
            return self.fragments[id(arg)]
        return tuple(map(self.arg, arg)) if type(arg) is tuple else arg

    def nodes(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """Operations."""
        return tuple(replace(n, args={k: self.arg(a) for k, a in n.args.items()}, type=self.arg(n.type)) for n in nodes)

    def graph(self, graph: Graph) -> Graph:
        """A graph of operations."""
        tables = graph.inputs, graph.params, graph.buffers
        inputs, params, buffers = ({k: self.arg(v) for k, v in table.items()} for table in tables)
        return replace(graph, nodes=self.nodes(graph.nodes), inputs=inputs, params=params, buffers=buffers)

    def pc(self, pc: PCGraph) -> PCGraph:
        """A graph of vertices."""
        vertices = tuple(
            replace(v, prediction=self.nodes(v.prediction), rules=self.nodes(v.rules), type=self.arg(v.type))
            for v in pc.vertices
        )
        return replace(pc, graph=self.graph(pc.graph), vertices=vertices, context=self.nodes(pc.context))
