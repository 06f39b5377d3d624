"""Operations that users define: a torch operator of their own, and what its message is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import sympy as sp
import torch

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.elementwise import arguments, rule_of
from pccompile.ops.expressions import stable, torch_code, x, y
from pccompile.ops.registry import OpDef, define
from pccompile.ops.trace import captured, constants_of, inline
from pccompile.ops.typer import Typer


def user_elementwise(op: object, formula: Callable[..., sp.Expr]) -> OpDef:
    """Define a user's own torch operator by an expression; it is printed as that expression, so nothing else is needed.

    op: what `torch.library.custom_op` returns, or an OpOverload. formula: from sympy symbols, one for each tensor
    argument, to an expression. Raises TypeError for anything else, ValueError for a function without a torch spelling.
    """
    name, _ = _operator(op, "register_elementwise")
    symbols = [(s, a) for s, a in arguments(name) if s in (x, y)]
    expr = stable(sp.sympify(formula(*(s for s, _ in symbols))))
    torch_code(expr, {s.name: s.name for s in expr.free_symbols})
    return define(
        name,
        "elementwise",
        rule_of(tuple(symbols), lambda node: expr, {}, None),
        spell=torch_code(expr, {s.name: a for s, a in symbols}),
        equation=str(expr),
        samples=(lambda: tuple(torch.randn(4, 3, dtype=torch.float64) for _ in symbols),),
        formula=lambda node: expr,
    )


def user_linear(op: object, adjoint: Callable[..., torch.Tensor]) -> OpDef:
    """Define a user's own torch operator, linear in its first argument, by its adjoint: a torch function, traced.

    op: as for user_elementwise; it has one result. adjoint: from the error and the operator's other arguments to the
    message, of the shape of the first argument; that shape is given to a parameter called `shape`, if there is one.
    The operator's other arguments may be tensors, but no error passes to them. Raises TypeError.
    """
    name, target = _operator(op, "register_linear")
    first, *others = (a.name for a in target._schema.arguments)
    wants_shape = "shape" in inspect.signature(adjoint).parameters

    def rule(b: Builder, node: Node, err: Ref) -> Mapping[str, Any]:
        learning = [a for a in others if isinstance(node[a], Ref) and node[a] in b.wants]
        if learning:
            raise NotImplementedError(f"it is linear in {first} only, but an error would pass to {learning[0]} as well")
        given = [a for a in others if isinstance(node[a], Ref)]

        def message(typer: Typer, e: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
            values = dict(zip(given, tensors, strict=True))
            rest = [values[a] if a in values else typer.value(node[a], b.types) for a in others]
            shape = {"shape": tuple(map(typer.size, b.shape(node[first])))} if wants_shape else {}
            return [adjoint(e, *rest, **shape)]

        names = [err, *(node[a] for a in given)]
        traced, typer = captured(b, names, message)
        (sent,) = inline(b, traced.graph, names, constants_of(traced), typer)
        if b.shape(sent) != b.shape(node[first]):
            raise NotImplementedError(f"its adjoint returns {b.type(sent)} for {b.type(node[first])}")
        return {first: sent}

    return define(name, "linear", rule)


def _operator(op: object, door: str) -> tuple[str, torch._ops.OpOverload]:
    """The name of a user's operator in the dialect, and the operator."""
    op = getattr(op, "_opoverload", op)
    if isinstance(op, torch._ops.OpOverloadPacket):
        op = getattr(op, op.overloads()[0])
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(
            f"{door} takes an operator made with torch.library.custom_op; "
            f"{getattr(op, '__name__', op)!r} is a plain function, which is compiled without being registered"
        )
    return str(op) if str(op).count(".") == 2 else f"{op.namespace}.{op._opname}.{op._overloadname}", op
