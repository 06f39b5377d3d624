"""Regions of an exported program that torch keeps as functions of their own, written out in place.

`torch.no_grad()` blocks arrive as `wrap_with_set_grad_enabled`; when such a block is written out its float results get
a barrier, since through them no error may pass. Checkpointed regions are written out as they stand.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from pccompile.frontends.functional import NO_GRAD, mutated, stopped, viewed
from pccompile.frontends.memory import settle_memory
from pccompile.ops import bind, definition
from pccompile.ops.functions import stop_gradient

PLAIN = ("tag_activation_checkpoint", "wrap_activation_checkpoint", "invoke_subgraph")


def inline_regions(program: ExportedProgram) -> None:
    """Write out, in place, regions that are only groupings, put barriers where gradients stop, and settle memory."""
    graph_module = program.graph_module
    _barriers(graph_module)
    while region := _next_region(graph_module.graph):
        _inline(graph_module, region)
    for n in list(graph_module.graph.nodes):
        if n.op == "get_attr" and not n.users:
            graph_module.graph.erase_node(n)
    settle_memory(graph_module.graph)
    graph_module.recompile()


def _barriers(graph_module: fx.GraphModule) -> None:
    for module in graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for n in module.graph.nodes:
                if n.op == "call_function" and str(n.target) in ("aten.detach.default", "aten.detach_.default"):
                    n.target = stop_gradient()


def _name(n: fx.Node) -> str:
    return n.target.name() if isinstance(n.target, torch._ops.HigherOrderOperator) else ""


def _next_region(graph: fx.Graph) -> fx.Node | None:
    return next((n for n in graph.nodes if n.op == "call_function" and _is_plain(n)), None)


def _is_plain(n: fx.Node) -> bool:
    """Whether a region is only a grouping, now that the casts of autocast have been written out."""
    return _name(n) in ("wrap_with_set_grad_enabled", "wrap_with_autocast", *PLAIN)


def _inline(graph_module: fx.GraphModule, region: fx.Node) -> None:
    kind = _name(region)
    lead = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(kind, 0)
    settings, body_node, arguments = region.args[:lead], region.args[lead], list(region.args[lead + 1 :])
    if kind == "invoke_subgraph":
        arguments = arguments[1:]
    assert isinstance(body_node, fx.Node)
    body: fx.GraphModule = graph_module.get_submodule(str(body_node.target))  # type: ignore[assignment]
    env: dict[fx.Node, Any] = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), arguments, strict=True))
    stops = kind == "wrap_with_set_grad_enabled" and not settings[0]
    with graph_module.graph.inserting_before(region):
        for n in body.graph.nodes:
            if n.op == "get_attr":
                path = f"{body_node.target}.{n.target}"
                env[n] = graph_module.graph.get_attr(path)
            elif n.op == "call_function":
                env[n] = graph_module.graph.node_copy(n, lambda x: env[x])
                if stops and _from_outside(n):
                    env[n].meta[NO_GRAD] = True
                    with graph_module.graph.inserting_before(env[n]):
                        for source in set(env[n].all_input_nodes) - set(mutated(env[n])):
                            env[n].replace_input_with(source, _without_gradient(graph_module.graph, source))
            elif n.op == "output":
                result = fx.node.map_arg(n.args[0], lambda x: env[x])
        results = list(result) if isinstance(result, tuple | list) else [result]
        if stops:
            inside = {env[n] for n in body.graph.nodes if n.op == "call_function"}
            results = [_without_gradient(graph_module.graph, r) if _itself(r) in inside else r for r in results]
    for user in list(region.users):
        if user.target is operator.getitem:
            index: Any = user.args[1]
            user.replace_all_uses_with(results[index])
            graph_module.graph.erase_node(user)
    if region.users:
        region.replace_all_uses_with(results[0])
    graph_module.graph.erase_node(region)


def _from_outside(n: fx.Node) -> bool:
    """Whether an operation of a region changes in place what was made outside, which keeps the gradient that it had."""
    open_ = mutated(n)
    while open_:
        source = open_.pop()
        if source.op == "placeholder":
            return True
        open_ += [*viewed(source), *mutated(source)]
    return False


def _itself(value: Any) -> Any:
    """The value that `value` is: a cast to its own type and the like return their argument, gradient and all."""
    while isinstance(value, fx.Node):
        if written := mutated(value):
            value = written[0]
        elif _returns_its_argument(value):
            value = value.args[0]
        else:
            break
    return value


def _returns_its_argument(n: fx.Node) -> bool:
    if n.op != "call_function" or not definition(str(n.target)).returns_argument or not isinstance(n.args[0], fx.Node):
        return False
    before, after = n.args[0].meta.get("val"), n.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    options = bind(str(n.target), n.args, n.kwargs)
    drops = options.get("train") and options["p"] != 0
    alike = before.dtype == after.dtype and before.device == after.device and before.stride() == after.stride()
    return alike and not options.get("copy") and not drops


def _without_gradient(graph: fx.Graph, value: Any) -> Any:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    if isinstance(value, fx.Node) and value.meta.get(NO_GRAD):
        return value
    if not isinstance(tensor, torch.Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return value
    return stopped(graph, value)
