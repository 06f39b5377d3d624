"""Canonical form: one spelling for each computation, in operations with a rule or a derivative formula of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pccompile.diagnostics import CompileError, Location, RuleError, first_line
from pccompile.ir import Arg, Fragment, Graph, Node, Ref, live, map_refs
from pccompile.ops import Builder, Typer, decompose, definition, is_composite

ROUNDS = 12


def canonicalise(graph: Graph, typer: Typer) -> Graph:
    """Rewrite every operation that is defined by others, until none is left."""
    graph = replace(graph, nodes=tuple(_with_fragments(n, typer) for n in graph.nodes))
    for _ in range(ROUNDS):
        if not any(_rewritten(n) for n in graph.nodes):
            return graph
        graph = once(graph, typer, _rewritten, _expanded)
    raise CompileError(f"rewriting does not end: {next(n for n in graph.nodes if _rewritten(n)).op}")


def _with_fragments(node: Node, typer: Typer) -> Node:
    """`node` with the programs that it calls in canonical form."""
    if not any(isinstance(a, Fragment) for a in node.args.values()):
        return node
    args = {k: _fragment(a, typer, node.where) if isinstance(a, Fragment) else a for k, a in node.args.items()}
    return replace(node, args=args)


def _fragment(fragment: Fragment, typer: Typer, where: Location) -> Fragment:
    graph = canonicalise(Graph(fragment.parameters, {}, {}, fragment.nodes, fragment.results), typer)
    if graph.updates:
        raise CompileError("control flow changes a buffer", where, "update it outside the branch or loop")
    if any(definition(n.op).random for n in graph.nodes):
        raise CompileError("control flow draws random numbers", where, "draw them outside and pass them as an operand")
    results = tuple(map(Ref, graph.outputs))
    return replace(fragment, nodes=live(graph.nodes, results), results=results)


def _rewritten(node: Node) -> bool:
    return definition(node.op).expand is not None or is_composite(node.op)


def once(
    graph: Graph, typer: Typer, rewritten: Callable[[Node], bool], expanded: Callable[[Builder, Node], Arg]
) -> Graph:
    """`graph` with each node for which rewritten(node) holds replaced by what expanded(builder, node) writes."""
    b = Builder(graph.leaves, typer, "")
    b.updates.update({k: Ref(v) for k, v in graph.updates.items() if k in graph.leaves})
    b.reserved = {n.name for n in graph.nodes}
    env: dict[str, Arg] = {name: Ref(name) for name in graph.leaves}
    for n in graph.nodes:
        args = {k: map_refs(a, lambda r: env[r]) for k, a in n.args.items()}
        node, start = replace(n, args=args), len(b.nodes)
        b.where, b.prefix = n.where, f"{n.name}_"
        if n.op == "getitem" and isinstance(args["of"], tuple):
            env[n.name] = args["of"][args["index"]]
        elif not rewritten(node):
            b.add(node)
            env[n.name] = Ref(n.name)
            continue
        else:
            env[n.name] = expanded(b, node)
        env[n.name] = _named(b, env[n.name], n.name, start)
    updates = {k: str(map_refs(v, lambda r: env.get(r, r))) for k, v in b.updates.items()}
    outputs = tuple(str(env[o]) for o in graph.outputs)
    states = {k: str(env[v]) for k, v in graph.states.items()}
    dims = {k: replace(s, tensor=str(env.get(s.tensor, s.tensor))) for k, s in graph.dims.items()}
    return replace(graph, nodes=tuple(b.nodes), outputs=outputs, updates=updates, dims=dims, states=states)


def _expanded(b: Builder, node: Node) -> Arg:
    """The result of `node`, written in other operations. Raises RuleError where torch cannot say of which."""
    expand = definition(node.op).expand or decompose
    try:
        return expand(b, node)
    except (RuntimeError, NotImplementedError) as e:
        hint = "write it in simpler operations, or compute it outside the model"
        raise RuleError(f"{node.op} cannot be taken apart: {first_line(e)}", node.where, hint) from e


def _named(b: Builder, result: Arg, name: str, start: int) -> Arg:
    """Give a result that was just made the name of the operation that it stands for."""
    if not isinstance(result, Ref):
        return result
    for i in range(len(b.nodes) - 1, start - 1, -1):
        if b.nodes[i].name == result:
            b.rename(i, name)
            return Ref(name)
    return result
