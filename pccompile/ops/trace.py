"""Operations from a traced function, and the rule of any operation by tracing its vector-Jacobian product.

Tracing happens at compile time and yields ATen operations: nothing of autograd is left when the program runs.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.ir import DEVICE, Arg, Node, Ref, TensorType, refs
from pccompile.ops.builder import Builder
from pccompile.ops.held_tensors import note_backward, note_derivative
from pccompile.ops.registry import OPS, Message, Rule, define, definition
from pccompile.ops.signatures import overload
from pccompile.ops.typer import Typer, split_arguments


def fx_arg(typer: Typer, arg: Any, env: Mapping[fx.Node, Arg]) -> Arg:
    """An argument of an fx node as an argument of ours."""
    if isinstance(arg, fx.Node):
        return env[arg]
    if isinstance(arg, list | tuple):
        return tuple(fx_arg(typer, a, env) for a in arg)
    if isinstance(arg, torch.SymInt | torch.SymFloat) or type(arg) is int:
        return typer.dim(arg)
    return arg


def inline(
    b: Builder,
    graph: fx.Graph,
    arguments: Sequence[Arg],
    constants: Mapping[str, torch.Tensor],
    typer: Typer | None = None,
    nested: Callable[[fx.Node, Sequence[Arg]], Ref] | None = None,
) -> list[Arg]:
    """Append the operations of a traced function to `b`; return what it returns.

    typer: what the function was traced with, where that is not the builder's own. nested: appends a call that has
    programs among its arguments, which are passed as nodes.
    """
    typer = typer or b.typer
    env: dict[fx.Node, Arg] = {}
    given = iter(arguments)
    for n in graph.nodes:
        value = n.meta.get("val")
        if n.op == "placeholder":
            env[n] = next(given)
        elif n.op == "get_attr":
            tensor = isinstance(constants[n.target], torch.Tensor)
            env[n] = constant(b, constants[n.target]) if tensor else n
        elif n.op == "output":
            returned = n.args[0] if isinstance(n.args[0], list | tuple) else (n.args[0],)
            return [fx_arg(typer, a, env) for a in returned]
        elif isinstance(value, torch.SymInt | torch.SymFloat):
            env[n] = typer.dim(value)
        elif nested and not isinstance(n.target, torch._ops.OpOverload) and n.target is not operator.getitem:
            env[n] = nested(n, [fx_arg(typer, a, env) for a in n.args])
        elif n.target is operator.getitem:
            env[n] = b.get(env[n.args[0]], n.args[1])
        else:
            own, named = (own_strides(n), {}) if n.target in STRIDED else (n.args, n.kwargs)
            args = [fx_arg(typer, a, env) for a in own]
            kwargs = {k: fx_arg(typer, a, env) for k, a in named.items()}
            env[n] = canonical(b, str(n.target), args, kwargs)
    raise AssertionError("a traced function returns")


AS_STRIDED = torch.ops.aten.as_strided.default
STRIDED = (AS_STRIDED, torch.ops.aten.as_strided_scatter.default)
"""Operators that are told where entries lie in memory."""


def own_strides(n: fx.Node) -> tuple[Any, ...]:
    """The arguments of an operator of STRIDED, its offset counted from where its tensor starts.

    Raises NotImplementedError where that tensor's entries do not lie side by side in memory, or others are read too:
    the gradient would then depend on how the tensor came about.
    """
    names = [a.name for a in n.target._schema.arguments]  # type: ignore[union-attr]
    arguments = dict(zip(names, n.args, strict=False)) | n.kwargs
    size, stride = (list(map(_number, arguments[k])) for k in ("size", "stride"))
    tensor = _number(arguments["self"])
    start = tensor.storage_offset()
    offset = _number(arguments.get("storage_offset"))
    offset = start if offset is None else offset
    reached = offset - start + sum((d - 1) * s for d, s in zip(size, stride, strict=True))
    if not tensor.is_contiguous() or offset < start or reached >= tensor.numel():
        raise NotImplementedError("as_strided reads memory between or beyond the entries of its tensor")
    source = [arguments[k] for k in ("self", "src") if k in arguments]
    return *source, size, stride, offset - start


def _number(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else value


def constant(b: Builder, tensor: torch.Tensor) -> Ref:
    """A small tensor that a trace met, as an operation."""
    if tensor.numel() == 1:
        return b("aten.full.default", tuple(tensor.shape), tensor.item(), dtype=tensor.dtype, device=DEVICE)
    if tensor.numel() > LARGEST:
        raise NotImplementedError("a traced rule holds a large tensor of its own")
    return b("pcc.tensor", _tuples(tensor.tolist()), tuple(tensor.shape), tensor.dtype, DEVICE)


LARGEST = 1024
"""The most entries of a tensor that are written out in a generated file."""


def _tuples(entries: Any) -> Any:
    return tuple(map(_tuples, entries)) if isinstance(entries, list) else entries


define(
    "pcc.tensor",
    "context",
    parameters=("entries", "shape", "dtype", "device"),
    infer=lambda args, type_of: TensorType(args["shape"], args["dtype"]),
    spell=lambda a: f"torch.tensor(entries, dtype=dtype, device=device){'.reshape(shape)' * (0 in a['shape'])}",
)


def canonical(b: Builder, op: str, args: Sequence[Arg], kwargs: Mapping[str, Arg]) -> Ref:
    """Append a traced operation as the dialect has it: views become reshapes, bookkeeping copies vanish."""
    if op in ("aten.view.default", "aten._unsafe_view.default"):
        return b.view(args[0], args[1])
    if op == "aten.detach.default" or definition(op).identity:
        return args[0]
    return b(op, *args, **kwargs)


Table = Mapping[torch._ops.OpOverload, Callable[..., Any]]
"""Decompositions of operators, as torch._decomp has them."""


def trace(function: Callable[..., Any], fakes: Sequence[Any], mode: Any, table: Table | None = None) -> fx.GraphModule:
    """`function` on fake tensors, as a functional graph of ATen operations, those in `table` taken apart.

    Traced twice where a derivative formula writes in place: differentiating inside functionalisation is not allowed.
    """
    with mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = make_fx(function, table, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
        if any(_writes(n) for n in traced.graph.nodes):
            functional = torch.func.functionalize(traced, remove="mutations")
            traced = make_fx(functional, table, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    traced.graph.eliminate_dead_code()
    return traced


def _writes(n: fx.Node) -> bool:
    return isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable


def captured(
    b: Builder,
    names: Sequence[str],
    function: Callable[..., Any],
    fresh: Callable[[], None] = lambda: None,
    table: Table | None = None,
) -> tuple[fx.GraphModule, Typer]:
    """function(typer, *tensors) traced on the types of `names`, and the typer that says what its numbers stand for.

    `fresh` is called before each attempt: see Typer.either.
    """

    def attempt(typer: Typer) -> tuple[fx.GraphModule, Typer]:
        fresh()
        fakes = _fakes(typer, [b.type(n) for n in names])
        return trace(lambda *xs: function(typer, *xs), fakes, typer.mode, table), typer

    return b.typer.either(attempt, _form)


def _form(found: tuple[fx.GraphModule, Typer]) -> Any:
    """What was traced as plain data: operations with the places of their arguments, constants by their entries."""
    traced, typer = found
    places = {n: f"%{i}" for i, n in enumerate(traced.graph.nodes)}
    constants = {k: str(t.tolist()) for k, t in constants_of(traced).items()}
    return tuple(
        (
            str(n.target),
            constants.get(str(n.target)),
            fx_arg(typer, n.args, places),
            fx_arg(typer, tuple(n.kwargs.items()), places),
        )
        for n in traced.graph.nodes
    )


def decompose(
    b: Builder,
    node: Node,
    table: Table | None = None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Message:
    """Append `node`, whose operator torch or `table` composes of others, as those others; return its result or results.

    within: the context in which the operator is called.
    """
    names = list(dict.fromkeys(node.inputs))

    def call(typer: Typer, *tensors: torch.Tensor) -> list[torch.Tensor]:
        with within():
            return _leaves(_call(b, node, dict(zip(names, tensors, strict=True)), typer))

    traced, typer = captured(b, names, call, table=table)
    results = inline(b, traced.graph, names, constants_of(traced), typer)
    if isinstance(node.type, tuple):
        return tuple(results)
    return results[0]


def traced_rule(b: Builder, node: Node, err: Any) -> Mapping[str, Message]:
    """The messages of any operation: its vector-Jacobian product, traced through torch's own derivative formulas."""
    b.reuse(node)
    names = list(dict.fromkeys(node.inputs))
    errors = [e for e in (err if isinstance(err, tuple) else (err,)) if e is not None]
    active = [n for n in names if n in b.wants]
    missing: list[str] = []

    def product(typer: Typer, *tensors: torch.Tensor) -> list[torch.Tensor]:
        values: dict[str, Any] = {n: t.detach() for n, t in zip(names, tensors, strict=False)}
        with torch.enable_grad():
            for n in active:
                values[n] = values[n].requires_grad_()
            results = _leaves(_call(b, node, values, typer))
            note_derivative(node.op.rpartition(".")[0], results)
            if isinstance(err, tuple):
                results = [r for r, e in zip(results, err, strict=False) if e is not None]
            pairs = [(r, c) for r, c in zip(results, tensors[len(names) :], strict=True) if r.requires_grad]
            inputs = [values[n] for n in active]
            got = torch.autograd.grad([r for r, _ in pairs], inputs, [c for _, c in pairs], allow_unused=True)
        missing.extend(n for n, g in zip(active, got, strict=True) if g is None)
        return [g for g in got if g is not None]

    traced, typer = captured(b, [*names, *errors], product, missing.clear)
    if not node.op.startswith("aten."):
        note_backward(constants_of(traced).values())
    found = [n for n in active if n not in missing]
    sent = dict(zip(found, inline(b, traced.graph, [*names, *errors], constants_of(traced), typer), strict=True))
    return _by_argument(node, sent)


def unless_complex(rule: Rule) -> Rule:
    """`rule`, or the traced rule where a number is complex: what has to be conjugated is then left to torch."""

    def guarded(b: Builder, node: Node, err: Any) -> Mapping[str, Message]:
        types = [b.types[name] for name in (*node.inputs, node.name) if name in b.types]
        if any(isinstance(t, TensorType) and t.dtype.is_complex for t in types):
            return traced_rule(b, node, err)
        return rule(b, node, err)

    return guarded


def _by_argument(node: Node, sent: Mapping[str, Arg]) -> dict[str, Message]:
    """Messages by argument from messages by name: one that is read twice sends its message through its first place."""
    left = dict(sent)
    return {k: _take(a, left) for k, a in node.args.items() if any(r in sent for r in refs([a]))}


def _take(arg: Arg, left: dict[str, Arg]) -> Any:
    if isinstance(arg, tuple):
        return tuple(_take(a, left) for a in arg)
    return left.pop(arg, None) if isinstance(arg, Ref) else None


def _call(b: Builder, node: Node, values: Mapping[str, Any], typer: Typer) -> Any:
    target = overload(node.op)

    def value(arg: Arg) -> Any:
        if isinstance(arg, Ref):
            return values[arg]
        return [value(a) for a in arg] if isinstance(arg, tuple) else typer.value(arg, b.types)

    positional, named = split_arguments(target, {k: value(a) for k, a in node.args.items()})
    return target(*positional, **named)


def _leaves(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [r for r in result if isinstance(r, torch.Tensor)]


def _fakes(typer: Typer, types: Sequence[TensorType]) -> list[torch.Tensor]:
    with typer.mode:
        return [torch.empty_like(typer.fake(t)) for t in types]  # one object each: a trace tells them apart by it


def constants_of(traced: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The tensors that a traced function holds, by name."""
    return {n.target: getattr(traced, n.target) for n in traced.graph.nodes if n.op == "get_attr"}


def is_composite(op: str) -> bool:
    """Whether torch composes this operator of others, so that it has no derivative formula of its own."""
    if op in OPS or not op.startswith("aten."):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(overload(op).name(), "CompositeImplicitAutograd")
