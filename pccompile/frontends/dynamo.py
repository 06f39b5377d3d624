"""Pieces of a program that Dynamo cuts at graph breaks, as modules that torch.export takes."""

from __future__ import annotations

import builtins
import copy
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
APPLY = "hop.autograd_function_apply"
NESTED = {APPLY: (0, 2, 0), "hop.tag_activation_checkpoint": (0, 1, 0), "hop.register_hook": (1, 2, 1)}
"""Calls of a graph of their own: which argument it is, and where its arguments begin in the call and in the graph."""


@dataclass(frozen=True)
class Exportable:
    """A piece as a module, which of the piece's arguments it takes, and which of them are numbers that vary.

    fixed: those numbers must be put in place before the piece can be compiled.
    """

    module: fx.GraphModule
    arguments: tuple[int, ...]
    numbers: tuple[int, ...]
    fixed: bool


def exportable(piece: fx.GraphModule, values: Mapping[int, float] | None = None) -> Exportable:
    """A piece without the lengths among its arguments.

    Lengths are read off the tensors instead, so that they can stay free; arguments get the names of what they are in
    the user's program. `dynamic_shapes` of the module says which dimensions Dynamo found to vary. `values` are numbers
    to put in place of arguments.
    Raises CompileError for a hook whose gradient cannot be told from the piece.
    """
    copied = fx.Graph()
    copied.output(copied.graph_copy(piece.graph, {}))
    module = fx.GraphModule(piece, copied, type(piece).__name__)
    graph = module.graph
    own_bodies(module)
    originals = [n for n in piece.graph.nodes if n.op == "placeholder"]
    arguments = [n for n in graph.nodes if n.op == "placeholder"]
    numbers, fixed = put_numbers(module, arguments, values or {})
    sources = _lengths(list(zip(arguments, originals, strict=True)))
    namer = Namer((*(n.name for n in graph.nodes), *_code_names(graph)))
    tensors = []
    for i, (n, original) in enumerate(zip(arguments, originals, strict=True)):
        symbol = _symbol(original.meta.get("example_value"))
        if symbol in sources:
            with graph.inserting_after(arguments[-1]):
                n.replace_all_uses_with(graph.call_function(torch.ops.aten.sym_size.int, sources[symbol]))
        elif n.users or i not in (values or {}):
            n.name = n.target = namer(_label(original))
            tensors.append(i)
    for i, n in enumerate(arguments):
        if i not in tensors:
            graph.erase_node(n)
    _detach_data(graph)
    _call_checkpointed(graph)
    _hooks_as_functions(graph)
    module.recompile()
    module.dynamic_shapes = _free([originals[i].meta.get("example_value") for i in tensors])  # type: ignore[assignment]
    return Exportable(module, tuple(tensors), numbers, fixed)


def _lengths(arguments: Sequence[tuple[fx.Node, fx.Node]]) -> dict[Any, tuple[fx.Node, int]]:
    """For each length that varies, an argument and the axis to read it off."""
    lengths: dict[Any, tuple[fx.Node, int]] = {}
    for n, original in arguments:
        value = original.meta.get("example_value")
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if (symbol := _symbol(size)) is not None:
                lengths.setdefault(symbol, (n, axis))
    return lengths


def _detach_data(graph: fx.Graph) -> None:
    """Let `.data` be what it is: the same memory without gradient."""
    for n in graph.nodes:
        if op_name(n.target) == "_get_data_attr":
            n.op, n.target = "call_method", "detach"


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


def _is_made(value: Any) -> bool:
    """Whether a value is computed in a piece, other than a length."""
    return isinstance(value, fx.Node) and value.op != "placeholder" and op_name(value.target) not in SIZES


def _hooks_as_functions(graph: fx.Graph) -> None:
    """Let all that reads a value with a hook read it through a Function whose backward is the hook."""
    chains: dict[fx.Node, list[fx.Node]] = {}
    for n in [n for n in graph.nodes if op_name(n.target) == "hop.register_hook"]:
        read, body, *more = n.args
        value = next((v for v, chain in chains.items() if chain[0] is read), read)
        if value.op == "placeholder" or any(_is_made(m) for m in more):
            raise CompileError(
                "a hook on a value reads what is made elsewhere (Tensor.register_hook)",
                hint="write it as a custom autograd.Function, whose backward is compiled",
            )
        n.replace_all_uses_with(read)
        graph.erase_node(n)
        with graph.inserting_after(value):
            hook = graph.get_attr(body.target)
        with graph.inserting_after(hook):
            hooked = graph.call_function(_hooked, (value, hook, *more))
        if value in chains:  # the hook that was registered first acts first
            chains[value][-1].replace_input_with(value, hooked)
        else:
            value.replace_all_uses_with(hooked, delete_user_cb=functools.partial(operator.is_not, hooked))
        chains.setdefault(value, []).append(hooked)
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
    expression = value.node.expr if isinstance(value, torch.SymInt) else None
    return expression if isinstance(expression, sympy.Symbol) else None


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
