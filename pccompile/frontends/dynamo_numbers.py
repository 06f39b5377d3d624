"""Python floats that Dynamo hands to a piece as tensors, because they vary from call to call."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from pccompile.frontends.functional import op_name

APPLY = "hop.autograd_function_apply"
NESTED = {APPLY: (0, 2, 0), "hop.tag_activation_checkpoint": (0, 1, 0), "hop.register_hook": (1, 2, 1)}
"""Calls of a graph of their own: which argument it is, and where its arguments begin in the call and in the graph."""


def own_bodies(module: fx.GraphModule) -> None:
    """Let `module` call copies of the graphs that it calls, which may then be changed."""
    for n in module.graph.nodes:
        if op_name(n.target) in NESTED:
            for body in n.args[:2]:
                if isinstance(body, fx.Node) and body.op == "get_attr":
                    setattr(module, str(body.target), copy.deepcopy(getattr(module, str(body.target))))
                    own_bodies(getattr(module, str(body.target)))


def put_numbers(
    module: fx.GraphModule, arguments: Sequence[fx.Node], values: Mapping[int, float]
) -> tuple[tuple[int, ...], bool]:
    """Make the reads of floats numbers: where Dynamo guards their value, and where `values` has one.

    Returns the positions of the arguments that are floats and still vary, and whether one is read in a graph within.
    """
    varying, within = [], False
    for i, argument in enumerate(arguments):
        reads = list(_reads(module, argument))
        numbers = {n: v for n in reads if isinstance(v := n.meta.get("example_value"), torch.SymFloat)}
        if not reads or len(numbers) < len(reads) or not all(v.node.has_hint() for v in numbers.values()):
            continue
        for read, value in numbers.items():
            known = values.get(i, float(value.node.expr) if value.node.expr.is_number else None)
            if known is not None:
                _replace(read, known)
        left = list(_reads(module, argument))
        if left:
            varying.append(i)
            within = within or any(n.graph is not module.graph for n in left)
    return tuple(varying), within


def _reads(module: fx.GraphModule, argument: fx.Node) -> Iterator[fx.Node]:
    """Where a float is read, in the graphs within, too."""
    for user in argument.users:
        if user.op == "call_method" and user.target == "item":
            yield user
        elif op_name(user.target) in NESTED:
            which, start, first = NESTED[op_name(user.target)]
            body = _body(module, user.args[which])
            for n, passed in zip(_arguments(body)[first:], user.args[start:], strict=False):
                if passed is argument:
                    yield from _reads(body, n)
                    if op_name(user.target) == APPLY:
                        yield from _reads_behind(body, n, _body(module, user.args[1]))


def _reads_behind(forward: fx.GraphModule, argument: fx.Node, backward: fx.GraphModule) -> Iterator[fx.Node]:
    """Where a float is read by a custom backward, which its forward hands it with the other values that it saves."""
    returned = next(n for n in reversed(forward.graph.nodes) if n.op == "output")
    saved: Sequence[object] = returned.args[0][1]
    for n, value in zip(_arguments(backward)[-len(saved) :], saved, strict=False):
        if value is argument:
            yield from _reads(backward, n)


def _body(module: fx.GraphModule, called: object) -> fx.GraphModule:
    assert isinstance(called, fx.Node)
    body = getattr(module, str(called.target))
    assert isinstance(body, fx.GraphModule)
    return body


def _arguments(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _replace(read: fx.Node, number: float) -> None:
    """Put a number in place of a node."""
    for user in list(read.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: number if n is read else n)
    graph = read.graph
    graph.erase_node(read)
    if graph.owning_module is not None:
        graph.owning_module.recompile()
