"""Nodes of a graph run in torch one by one, differentiably: for constants, and as a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pccompile.ir import DEVICE, Arg, Node, Ref
from pccompile.ops.functions import STOP
from pccompile.ops.registry import overload
from pccompile.ops.typer import split_arguments


class _Author(torch.autograd.Function):
    """A value whose gradient is what the backward of a model's own autograd Function says."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, call: Any, shapes: Any, *tensors: Tensor) -> Tensor:
        ctx.call, ctx.shapes, ctx.tensors = call, shapes, tensors
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Any:
        flat = errors[0].reshape(-1).split([math.prod(s) for s in ctx.shapes])
        parts = [e.reshape(s) for e, s in zip(flat, ctx.shapes, strict=True)]
        return (None, None, None, *ctx.call.backward(ctx.tensors, parts))


def interpret(node: Node, values: Mapping[str, Any]) -> Any:
    """The result of `node` on `values`. Raises what torch raises, NotImplementedError for an operation of ours."""
    args = {name: _read(arg, values) for name, arg in node.args.items()}
    match node.op:
        case "getitem":
            return args["of"][args["index"]]
        case "pcc.tensor":
            return torch.tensor(node["entries"], dtype=node["dtype"]).reshape(tuple(node["shape"]))
        case "pcc.function":
            shapes = [tuple(map(int, t.shape)) for t in node["types"]]
            return _Author.apply(args["value"], node["call"], shapes, *args["tensors"])  # type: ignore[no-untyped-call]
        case "pccompile.overwritten.default":
            return args["old"] + (args["new"] - args["old"]).detach()
    if node.op == STOP:
        return args["x"].detach()
    if node.op.startswith("pcc."):
        raise NotImplementedError(f"{node.op} has no kernel in torch")
    positional, named = split_arguments(overload(node.op), args)
    return overload(node.op)(*positional, **named)


def _read(arg: Arg, values: Mapping[str, Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg]
    if isinstance(arg, tuple):
        return [_read(a, values) for a in arg]
    return torch.device("cpu") if arg is DEVICE else arg
