"""Nodes of a graph run in torch one by one, differentiably: for constants, and as a reference."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pccompile.ir import DEVICE, Arg, Node, Ref
from pccompile.ops.functions import STOP
from pccompile.ops.signatures import overload
from pccompile.ops.typer import split_arguments


class _Author(torch.autograd.Function):
    """A value whose gradient is what the backward of a model's own autograd Function says."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, node: Node, kept: Any, *tensors: Tensor) -> Tensor:
        ctx.node, ctx.kept = node, kept
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *errors: Any) -> Any:
        node: Any = ctx.node
        shapes = [tuple(map(int, t.shape)) for t in node["types"]]
        flat = errors[0].reshape(-1).split([math.prod(shapes[i]) for i in node["moving"]])
        parts = {i: e.reshape(shapes[i]) for i, e in zip(node["moving"], flat, strict=True)}
        zeros = [functools.partial(torch.zeros, s, dtype=t.dtype) for s, t in zip(shapes, node["types"], strict=True)]
        present = {i: part for i, part in parts.items() if i in node["present"]}
        return (None, None, None, *node["saved"].messages(ctx.kept, present, zeros))


def interpret(node: Node, values: Mapping[str, Any]) -> Any:
    """The result of `node` on `values`. Raises what torch raises, NotImplementedError for an operation of ours."""
    args = {name: _read(arg, values) for name, arg in node.args.items()}
    match node.op:
        case "getitem":
            return args["of"][args["index"]]
        case "pcc.tensor":
            return torch.tensor(node["entries"], dtype=node["dtype"]).reshape(tuple(node["shape"]))
        case "pcc.sized" | "pcc.on_path":
            return args["x"]
        case "pccompile.bernoulli_like.default":
            return torch.empty_like(args["x"]).bernoulli_(args["p"])
        case "pcc.function":
            return _Author.apply(args["value"], node, args["kept"], *args["tensors"])  # type: ignore[no-untyped-call]
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
