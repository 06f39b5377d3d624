"""Pieces of a program that Dynamo cuts at graph breaks, as modules that torch.export takes."""

from __future__ import annotations

import builtins
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim as ExportDim

from pccompile.diagnostics import CompileError
from pccompile.frontends.functional import op_name
from pccompile.ir.names import Namer

STEPS = re.compile(r"_(?:modules|parameters|buffers)\['([^']+)'\]")
SIZES = ("aten.sym_size.int",)
LOCAL = re.compile(r"L\['(?:___)?(\w+)'\]")
MEMBER = re.compile(r"\.(\w+)$")


@dataclass(frozen=True)
class Exportable:
    """A piece as a module, which of the piece's arguments it takes, and which of them are numbers that vary."""

    module: fx.GraphModule
    arguments: tuple[int, ...]
    numbers: tuple[int, ...]


def exportable(piece: fx.GraphModule, values: Mapping[int, float] | None = None) -> Exportable:
    """A piece without the lengths among its arguments.

    Lengths are read off the tensors instead, so that they can stay free; arguments get the names of what they are in
    the user's program. `dynamic_shapes` of the module says which dimensions Dynamo found to vary. `values` are numbers
    to put in place of arguments.
    Raises CompileError for a hook whose gradient cannot be told from the piece.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(piece.graph, copies))
    given = [(copies[n], n) for n in piece.graph.nodes if n.op == "placeholder"]
    numbers = _numbers(given, copies, values or {})
    sources = _lengths(given)
    namer = Namer((*(n.name for n in graph.nodes), *_code_names(graph)))
    kept = []
    for i, (n, original) in enumerate(given):
        symbol = _symbol(original.meta.get("example_value"))
        if symbol not in sources:
            n.name = n.target = namer(_label(original))
            kept.append(i)
            continue
        with graph.inserting_after(given[-1][0]):
            n.replace_all_uses_with(graph.call_function(torch.ops.aten.sym_size.int, sources[symbol]))
    kept = [i for i in kept if i not in (values or {})]
    for i, (n, _) in enumerate(given):
        if i not in kept:
            graph.erase_node(n)
    _call_checkpointed(graph)
    _hooks_as_functions(graph)
    module = fx.GraphModule(piece, graph, type(piece).__name__)
    module.dynamic_shapes = _free([given[i][1].meta.get("example_value") for i in kept])  # type: ignore[assignment]
    return Exportable(module, tuple(kept), numbers)


def _numbers(
    arguments: Sequence[tuple[fx.Node, fx.Node]], copies: Mapping[fx.Node, fx.Node], values: Mapping[int, float]
) -> tuple[int, ...]:
    """The arguments that are Python floats, which Dynamo hands over as tensors; their reads become numbers.

    A read is the number itself where Dynamo guards its value, and where `values` has one.
    """
    varying = []
    for i, (_, original) in enumerate(arguments):
        reads = [n for n in original.users if n.op == "call_method" and n.target == "item"]
        numbers = {n: v for n in reads if isinstance(v := n.meta.get("example_value"), torch.SymFloat)}
        if not reads or len(numbers) < len(reads) or not all(v.node.has_hint() for v in numbers.values()):
            continue
        for read, value in numbers.items():
            known = values.get(i, float(value.node.expr) if value.node.expr.is_number else None)
            if known is not None:
                _replace(copies[read], known)
        if copies[original].users:
            varying.append(i)
    return tuple(varying)


def _replace(read: fx.Node, number: float) -> None:
    """Put a number in place of a node."""
    for user in list(read.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: number if n is read else n)
    read.graph.erase_node(read)


def _lengths(given: Sequence[tuple[fx.Node, fx.Node]]) -> dict[Any, tuple[fx.Node, int]]:
    """For each length that varies, an argument and the axis to read it off."""
    found: dict[Any, tuple[fx.Node, int]] = {}
    for n, original in given:
        value = original.meta.get("example_value")
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if (symbol := _symbol(size)) is not None:
                found.setdefault(symbol, (n, axis))
    return found


def _call_checkpointed(graph: fx.Graph) -> None:
    """Call checkpointed parts as the modules that they are: what is recomputed changes no gradient."""
    for n in list(graph.nodes):
        if op_name(n.target) == "hop.tag_activation_checkpoint":
            with graph.inserting_before(n):
                n.replace_all_uses_with(graph.call_module(n.args[0].target, n.args[1:]))
            graph.erase_node(n)


class _Hooked(torch.autograd.Function):
    """The identity; its backward is a hook."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, hook: Callable[..., Any], *more: Any) -> torch.Tensor:
        """`x`."""
        ctx.hook = hook
        ctx.save_for_backward(*more)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, err: torch.Tensor) -> tuple[Any, ...]:
        """What the hook makes of the gradient."""
        sent = ctx.hook(err, *ctx.saved_tensors)
        return (err if sent is None else sent, None, *(None for _ in ctx.saved_tensors))


def _hooked(x: torch.Tensor, hook: Callable[..., Any], *more: Any) -> Any:
    return _Hooked.apply(x, hook, *more)  # type: ignore[no-untyped-call]


def _hooks_as_functions(graph: fx.Graph) -> None:
    """Let all that reads a value with a hook read it through a Function whose backward is the hook."""
    chains: dict[fx.Node, list[fx.Node]] = {}
    for n in [n for n in graph.nodes if op_name(n.target) == "hop.register_hook"]:
        read, body, *more = n.args
        value = next((v for v, chain in chains.items() if chain[0] is read), read)
        if value.op == "placeholder" or any(m.op != "placeholder" and op_name(m.target) not in SIZES for m in more):
            raise CompileError(
                "a hook on a value reads what is made elsewhere (Tensor.register_hook)",
                hint="write it as a custom autograd.Function, whose backward is compiled",
            )
        n.replace_all_uses_with(read)
        graph.erase_node(n)
        with graph.inserting_after(value):
            hook = graph.get_attr(body.target)
        with graph.inserting_after(hook):
            made = graph.call_function(_hooked, (value, hook, *more))
        if value in chains:  # the hook that was registered first acts first
            chains[value][-1].replace_input_with(value, made)
        else:
            value.replace_all_uses_with(made, delete_user_cb=functools.partial(operator.is_not, made))
        chains.setdefault(value, []).append(made)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "get_attr")


def _free(values: Sequence[Any]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    shapes = tuple(
        {axis: ExportDim.AUTO for axis, size in enumerate(v.shape) if isinstance(size, torch.SymInt)} or None
        if isinstance(v, torch.Tensor)
        else None
        for v in values
    )
    return lambda args: shapes


def _symbol(value: Any) -> sympy.Symbol | None:
    found = value.node.expr if isinstance(value, torch.SymInt) else None
    return found if isinstance(found, sympy.Symbol) else None


def _code_names(graph: fx.Graph) -> set[str]:
    """The names that torch.fx writes into a graph's code besides those of its nodes."""
    return {"self", *dir(builtins), *graph.python_code("self").globals}


def _label(n: fx.Node) -> str:
    """What an argument is called in the user's program: a path in a module, or a local variable."""
    source = getattr(getattr(n, "_dynamo_source", None), "name", "")
    text = source() if callable(source) else str(source)
    local, member = LOCAL.match(text), MEMBER.findall(text)
    steps = [*STEPS.findall(text), *member]
    return ".".join(steps) if steps else local[1] if local else n.name


__all__ = ["Exportable", "exportable"]
