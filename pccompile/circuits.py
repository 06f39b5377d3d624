"""The way of a model to a netlist: capture with fixed shapes, simple operations, then the circuit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.backends.netlist import Lowerable, Netlist, NetlistOptions, build, has_circuit, with_probabilities
from pccompile.diagnostics import Collector
from pccompile.frontends.imported import Imported, Locate
from pccompile.ir import Graph, Ref, live
from pccompile.ops.packed import LAYERS
from pccompile.passes.activity import active
from pccompile.passes.canonicalise import canonicalise
from pccompile.passes.dce import dce
from pccompile.passes.every_place import every_place
from pccompile.passes.simplify import simplify
from pccompile.pipeline import Hook, Stages, import_model, silent


def simple_graph(imported: Imported, loss: str, hook: Hook = silent) -> tuple[Graph, list[str], dict[str, str]]:
    """A model in operations that have circuits, as far as it can be brought there; its results and their softmax."""
    stage, typer = Stages(hook), imported.typer
    graph = stage("import-graph", lambda: imported.graph)
    graph = stage("canonicalise", lambda: dce(canonicalise(graph, typer)))
    original = dict(zip(imported.graph.outputs, graph.outputs, strict=True))
    graph = stage("every-place", lambda: every_place(graph, typer))
    probabilities: dict[str, str] = {}
    if loss == "cross-entropy":
        carrying = active(graph)
        outputs = tuple(dict.fromkeys(o for o in graph.outputs if o in carrying))
        graph, probabilities = with_probabilities(graph, typer, outputs)
    before = graph.outputs
    graph = stage("simplify", lambda: simplify(graph, typer, has_circuit))
    renamed = dict(zip(before, graph.outputs, strict=True))
    results = [renamed[original[o]] for o in imported.outputs if isinstance(o, Ref)]
    return graph, results, {renamed[o]: renamed[p] for o, p in probabilities.items()}


@dataclass(frozen=True)
class Circuitry:
    """A netlist with what it was made of: `graph` in simple operations, its tensors and example inputs by name.

    results: the names of the model's outputs.
    """

    netlist: Netlist
    graph: Graph
    tensors: Mapping[str, Tensor]
    examples: Mapping[str, Tensor]
    results: tuple[str, ...]


def lay_out(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    options: NetlistOptions | None = None,
    locate: Locate | None = None,
    hook: Hook | None = None,
    name: str = "",
) -> Circuitry:
    """The circuit of `model` for inputs of the shapes given. Raises CompileError with all that has no circuit."""
    options, hook = options or NetlistOptions(), hook or silent
    imported = import_model(model, args, kwargs, locate=locate, hook=hook, fixed=True)
    _refuse_states(imported)
    _refuse_packed(imported)
    if options.input_errors:
        floating = {k for k, t in imported.graph.inputs.items() if t.differentiable}
        imported = replace(imported, graph=replace(imported.graph, wanted=imported.graph.wanted | floating))
    graph, results, probabilities = simple_graph(imported, options.loss, hook)
    leaves = pytree.tree_leaves((args, dict(kwargs or {})))
    examples = {n: t for n, t in zip(imported.inputs, leaves, strict=True) if n is not None and isinstance(t, Tensor)}
    tensors = {k: t.detach() for k, t in imported.tensors.items()}
    source = Lowerable(graph, tensors, examples, active(graph), imported.typer)
    label = name or type(model).__name__
    netlist = Stages(hook)("netlist", lambda: build(source, options, label, results, probabilities))
    return Circuitry(netlist, graph, tensors, examples, tuple(results))


def _refuse_states(imported: Imported) -> None:
    """Raise CompileError where a model changes what its next call reads: a circuit has no place for that."""
    problems, graph = Collector(), imported.graph
    outputs = graph.outputs[: len(graph.outputs) - graph.further]
    read = {i for n in live(graph.nodes, outputs) for i in n.inputs}.union(outputs)
    hint = "pass it as an input and return its new value"
    for state in (s for s in imported.states if s.read):
        problems.add(f"forward writes the state {state.place}, which a circuit does not keep", hint=hint)
    for name in imported.writes:
        problems.add(f"forward changes the input {name} in place", hint="clone it first")
    for buffer in graph.updates:
        if buffer in read:
            problems.add(f"forward writes the state {graph.origin[buffer]}, which a circuit does not keep", hint=hint)
    problems.raise_if_any()


def _refuse_packed(imported: Imported) -> None:
    """Raise CompileError for recurrent layers over packed sequences: how many rows they have is data."""
    problems, hint = Collector(), "give it padded sequences, and read their states at each one's end"
    for n in imported.graph.nodes:
        if n.op in LAYERS.values():
            problems.add("the netlist has no circuit for a recurrent layer over packed sequences", n.where, hint)
    problems.raise_if_any()


def compile_netlist(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    options: NetlistOptions | None = None,
    **more: Any,
) -> Netlist:
    """The netlist alone; arguments as for `lay_out`."""
    return lay_out(model, args, kwargs, options, **more).netlist


__all__ = ["Circuitry", "compile_netlist", "lay_out", "simple_graph"]
