"""What can be wrong with an ONNX file, found without running anything, all of it at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from onnx import defs

from pccompile.diagnostics import Collector, CompileError, Location, listing
from pccompile.frontends.onnx.registry import find
from pccompile.frontends.onnx.tensors import first_line, verify
from pccompile.frontends.onnx.values import DTYPES, NARROW, TEXT, type_name
from pccompile.limits import account, spend

STRUCTURAL = frozenset({"Constant"})
FOREIGN = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
"""What onnxruntime's optimiser puts into the standard domain whatever its version."""

QUANTIZED = ("Quantize", "Dequantize", "QLinear", "Integer", "QGemm", "QAttention")


def check_structure(model: onnx.ModelProto, collector: Collector) -> None:
    """Versions, names, order: everything that the rest relies on."""
    check_opsets(model, collector)
    check_functions(model, collector)
    check_graph(model.graph, set(), collector)


def check_opsets(model: onnx.ModelProto, collector: Collector) -> None:
    """Every operator set must be one that exists."""
    if not 0 <= model.ir_version <= onnx.IR_VERSION:
        collector.add(
            f"the file's format has version {model.ir_version}; this onnx knows 1 to {onnx.IR_VERSION}",
            hint="upgrade the onnx package, or save the model in an older format",
        )
    newest = defs.onnx_opset_version()
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    if "" not in versions and any(n.domain in ("", "ai.onnx") for n in all_nodes(model.graph)):
        collector.add("the model does not say which version of the ONNX operators it uses")
    version = versions.get("", newest)
    if not 1 <= version <= newest:
        collector.add(
            f"operator set version {version} is unknown; this onnx knows 1 to {newest}",
            hint="upgrade the onnx package, or convert the model to an older version",
        )
    own = {f.domain for f in model.functions}
    used = {n.domain for n in all_nodes(model.graph)} - {"", "ai.onnx"}
    for domain in sorted(used - set(versions) - own):
        collector.add(f"operators of the domain {domain!r} are used, but the model does not import it")


def check_functions(model: onnx.ModelProto, collector: Collector) -> None:
    """A model's own functions must not call themselves, directly or through others. Raises BudgetError for too much."""
    calls = {(f.domain, f.name): [(n.domain, n.op_type) for n in nodes_of(f.node)] for f in model.functions}
    try:
        order = list(TopologicalSorter({k: set(v) & set(calls) for k, v in calls.items()}).static_order())
    except CycleError as error:
        collector.add(f"functions call themselves: {listing(sorted({name for _, name in error.args[1]}))}")
        return
    sizes, depths = dict[tuple[str, str], int](), dict[tuple[str, str], int]()
    for key in order:
        sizes[key] = sum(sizes.get(called, 1) for called in calls[key])
        depths[key] = 1 + max((depths.get(called, 0) for called in calls[key]), default=0)
    used = [(n.domain, n.op_type) for n in all_nodes(model.graph)]
    with account():
        spend("nodes", sum(sizes.get(key, 0) for key in used), "putting functions in the places where they are called")
        spend("depth", max((depths.get(key, 0) for key in used), default=0), "calling functions from functions")


def check_graph(graph: onnx.GraphProto, outer: set[str], collector: Collector) -> None:
    """Each value is made once, before it is read."""
    given = [i.name for i in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    inputs = [i.name for i in graph.input]
    made: dict[str, str] = {}
    for name in (*given, *(i for i in inputs if i not in set(given))):
        if name in made:
            collector.add(f"two initializers or inputs are called {name}")
        made[name] = ""
    for node in graph.node:
        for output in node.output:
            if output and output in made:
                collector.add(f"two nodes or initializers make the value {output}", Location(label(node)))
            if output:
                made[output] = label(node)
    known = outer | set(made)
    for node in graph.node:
        absent = sorted({i for i in node.input if i and i not in known})
        if absent:
            collector.add(f"{node.op_type} reads {listing(absent)}, which nothing makes", Location(label(node)))
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                check_graph(inner, known, collector)
    for output in graph.output:
        if output.name not in known:
            collector.add(f"the output {output.name} is not made by anything")
    if not graph.output:
        collector.add("the graph has no output")
    stuck = sort_nodes(graph)
    if stuck:
        collector.add(f"nodes read each other in a circle: {listing(stuck)}")


def label(node: onnx.NodeProto) -> str:
    """What a node is called, in the same words for named and nameless ones."""
    return node.name or f"{node.op_type} -> {', '.join(node.output)}"


def sort_nodes(graph: onnx.GraphProto) -> list[str]:
    """The nodes that no order suits, the others being put each after what it reads."""
    makers = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    sources = {i: {makers[r] for r in reads(node) if r in makers} for i, node in enumerate(graph.node)}
    if all(s < i for i, several in sources.items() for s in several):
        return []
    sorter, order = TopologicalSorter(sources), list[int]()
    with suppress(CycleError):  # the nodes that no circle holds up come all the same
        sorter.prepare()
    while sorter.is_active():
        batch = sorter.get_ready()
        sorter.done(*batch)
        order += batch
    if len(order) < len(graph.node):
        return [label(n) for i, n in enumerate(graph.node) if i not in set(order)]
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return []


def reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node and its subgraphs read."""
    names = {i for i in node.input if i}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names |= {i for inner in all_nodes(attribute.g) for i in inner.input if i}
            names |= {o.name for o in attribute.g.output}
    return names


def all_nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """The nodes of a graph and of all graphs inside it."""
    return nodes_of(graph.node)


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """These nodes and all in the graphs that they hold."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g.node)


def check_types(model: onnx.ModelProto, collector: Collector) -> None:
    """Inputs and weights must be of a kind that can be computed with."""
    held = {i.name for i in model.graph.initializer}
    for entry in model.graph.input:
        if entry.name in held:
            continue
        kind = entry.type.WhichOneof("value") or "untyped"
        code = entry.type.tensor_type.elem_type
        if kind not in ("tensor_type", "sequence_type", "optional_type"):
            collector.add(f"input {entry.name} is {kind.replace('_type', '')}, not a tensor")
        elif kind == "tensor_type" and code != TEXT and code not in DTYPES and code not in NARROW:
            collector.add(f"input {entry.name} holds {type_name(code)}, which is not supported")
    for graph in graphs_of(model.graph):
        for sparse in graph.sparse_initializer:
            collector.add(f"initializer {sparse.values.name} is sparse", hint="store it as a dense tensor")


def check_tensors(model: onnx.ModelProto, folder: Path | None, collector: Collector) -> None:
    """Every weight must be there, in full, and nowhere but in the model's folder."""
    for graph in graphs_of(model.graph):
        attributes = [a.t for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
        for tensor in (*graph.initializer, *attributes):
            try:
                verify(tensor, folder)
            except CompileError as error:
                collector.problems.extend(p for p in error.problems if p not in collector.problems)


def graphs_of(graph: onnx.GraphProto) -> Iterable[onnx.GraphProto]:
    """A graph and all graphs inside it."""
    yield graph
    for node in all_nodes(graph):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g


def check_operators(model: onnx.ModelProto, collector: Collector) -> None:
    """Every operator must have a rule; one problem for each type, naming its nodes."""
    missing: dict[tuple[str, str], list[onnx.NodeProto]] = {}
    local = {(f.domain, f.name) for f in model.functions}
    for node in all_nodes(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type in STRUCTURAL or (node.domain, node.op_type) in local or find(domain, node.op_type):
            continue
        missing.setdefault((domain, node.op_type), []).append(node)
    for (domain, op_type), nodes in missing.items():
        title = f"{domain}.{op_type}" if domain else op_type
        names = listing(label(n) for n in nodes)
        origin = next((i for n in nodes for i in n.input if i), "")
        source = f"; reads {origin}" if origin else ""
        collector.add(
            f"no rule for {title} ({'node' if len(nodes) == 1 else 'nodes'} {names}{source})",
            hint=hint(domain, op_type),
        )


def hint(domain: str, op_type: str) -> str:
    """What a user can do about an operator without a rule."""
    if any(part in op_type for part in QUANTIZED):
        return "quantised arithmetic has no gradient; export the model in floating point"
    if domain == "ai.onnx.ml":
        return "it reads or makes tables, not tensors; cut the model before or behind it"
    if domain == "com.microsoft.nchwc":
        return "weights are laid out for one kind of processor; optimise with ORT_ENABLE_EXTENDED instead"
    if domain:
        return f"export without the extensions of {domain}"
    return "cut the model before or behind it, or export with an older or newer operator set"


def check_attributes(model: onnx.ModelProto, collector: Collector) -> None:
    """Each node must have the inputs and attributes that its operator asks for."""
    versions = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in model.opset_import}
    for node in all_nodes(model.graph):
        check_kinds(node, versions, collector)
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version or 3
    context.opset_imports = versions
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            continue
        if any(a.type == onnx.AttributeProto.TENSOR for a in node.attribute) or node.op_type in FOREIGN:
            continue
        try:
            onnx.checker.check_node(node, context)
        except Exception as error:
            collector.add(first_line(error), Location(label(node)))


def check_kinds(node: onnx.NodeProto, versions: Mapping[str, int], collector: Collector) -> None:
    """Each attribute of a node must be of the kind that its operator defines: a number where it asks for a number."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        defined = defs.get_schema(node.op_type, versions.get(domain, 1), domain).attributes
    except defs.SchemaError:
        return
    kind = onnx.AttributeProto.AttributeType.Name
    for a in node.attribute:
        wanted = int(defined[a.name].type) if a.name in defined else a.type  # type: ignore[call-overload]
        if a.type != wanted:
            what = f"attribute {a.name} of {node.op_type} is {kind(a.type)}, and must be {kind(wanted)}"
            collector.add(what, Location(label(node)))
