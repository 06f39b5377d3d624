"""Take apart what a backend has no element for: by its own composition, or as torch decomposes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch._decomp

from pccompile.diagnostics import CompileError
from pccompile.ir import Arg, Graph, Node
from pccompile.ops import Builder, Typer, decompose, definition, overload
from pccompile.passes.canonicalise import canonicalise, once
from pccompile.passes.dce import dce

ROUNDS = 12


def simplify(graph: Graph, typer: Typer, simple: Callable[[str], bool]) -> Graph:
    """`graph` in operations for which simple(op) holds, as far as others can be taken apart; without buffer updates.

    What can be neither expressed nor taken apart is left as it is, as are constants.
    """
    tables = torch._decomp.global_decomposition_table["post_autograd"]

    def composed(node: Node) -> bool:
        if simple(node.op) or node.op == "getitem" or not node.inputs:
            return False
        composes = definition(node.op).compose is not None
        return composes or (node.op.startswith("aten.") and overload(node.op) in tables)

    def written(b: Builder, node: Node) -> Arg:
        compose = definition(node.op).compose
        if compose is not None:
            try:
                return compose(b, node)
            except NotImplementedError as e:
                raise CompileError(f"{node.op} cannot be taken apart: {e}", node.where) from e
        target = overload(node.op)
        return decompose(b, node, {target: tables[target]})

    graph = dce(replace(graph, updates={}))
    for _ in range(ROUNDS):
        if not any(map(composed, graph.nodes)):
            break
        graph = dce(canonicalise(once(graph, typer, composed, written), typer))
    return graph
