"""Values with a backward rule of their own: custom autograd Functions, and writes in place where gradients are off.

The value is copied into a population that reads without being differentiated. Its messages are the operations of the
rule, lowered as any other with the population's error for their input.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import numpy as np

from pccompile.backends.netlist.circuit import grouped
from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import lowers
from pccompile.backends.netlist.lower.values import Signal, Values
from pccompile.diagnostics import CompileError
from pccompile.ir import ERROR, Node, refs
from pccompile.ops import Builder, definition

VALUE = {"pcc.function": "value", "pccompile.overwritten.default": "new"}
"""The argument that is the value, by operation."""


@lowers(*VALUE)
def copied(lo: Lowering, n: Node) -> Values:
    """A copy of the value, whose messages are the operation's own rule."""
    ids = lo.ids(n[VALUE[n.op]])
    name = lo.c.population(f"{n.name}.v", ids.shape, "sum", "value", n.name, n.name in lo.active)
    lo.c.unheard.add(name)
    lo.c.project(ids, name)
    if n.name in lo.active:
        lo.ruled[name] = n
    return Signal(lo.c.ids(name))


def add_rules(lo: Lowering, errors: Mapping[str, str]) -> None:
    """Build the rules of all values that have one of their own; `errors` are the error populations."""
    for name, node in lo.ruled.items():
        _rule(lo, node, errors[name], errors)


def _rule(lo: Lowering, node: Node, error: str, errors: Mapping[str, str]) -> None:
    rule = definition(node.op).rule
    assert rule is not None
    b = Builder(ChainMap({ERROR: node.tensor}, lo.types), lo.typer, f"{node.name}_message_", node.where)
    b.reserved = set(lo.env)
    b.wants = {i for i in node.inputs if i in lo.active}
    messages = rule(b, node, ERROR)
    lo.env[ERROR] = Signal(lo.c.ids(error))
    for n in b.nodes:
        lo.node = n
        try:
            lo.env[n.name] = lo.lowered(n)
        except Unsupported as e:
            raise CompileError(f"the netlist has no circuit for the rule of {node.op}: {e}", node.where) from e
    for argument, sent in messages.items():
        for parent, message in zip(refs([node[argument]]), sent if isinstance(sent, tuple) else (sent,), strict=True):
            if message is not None and parent in lo.active:
                _deliver(lo, lo.ids(parent), np.broadcast_to(lo.ids(message), lo.ids(parent).shape), errors)


def _deliver(lo: Lowering, parent: np.ndarray, message: np.ndarray, errors: Mapping[str, str]) -> None:
    """Send each entry of a message to the error unit of the unit that it is for."""
    for source in lo.c.sources(parent):
        if source not in lo.c.active:
            continue
        first, size = lo.c.first[source], lo.c.populations[source].size
        inside = (parent >= first) & (parent < first + size)
        lo.c.collect(grouped(parent[inside] - first, message[inside], size), errors[source])
