"""Fills: tensors of given numbers, which read no more of an argument than its shape and type.

Some of torch's operators put other numbers in the place of an argument, by a fill or a draw, and have a derivative by
it that is 0 everywhere. Their result is `pcc.flat`, so that what they read has the gradient 0, as with autograd.
"""

from __future__ import annotations

import torch

from pccompile.ir import DEVICE, Arg, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Message, define, rewrite
from pccompile.ops.trace import decompose

for name in ("empty", "zeros", "ones", "full"):
    for operation in (f"aten.new_{name}.default", f"aten.{name}_like.default"):
        define(operation, "context", form_only="self")

FLAT = define(
    "pcc.flat",
    "linear",
    lambda b, n, err: {"value": None, "by": None},
    parameters=("value", "by"),
    infer=lambda args, type_of: type_of(args["value"]),
    spell="value",
    equation="x",
    samples=(lambda: (torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)),),
)


def flat(b: Builder, value: Ref, by: Arg) -> Ref:
    """`value`, which stands in the place of `by` and does not change with it."""
    return b(FLAT.name, value, by)


rewrite("aten.zero.default", lambda b, n: flat(b, b("aten.zeros_like.default", n["self"]), n["self"]))


def _matrix_power(b: Builder, n: Node) -> Message:
    """The identity for the power 0, and what torch composes else."""
    if n["n"] != 0:
        return decompose(b, n)
    one = b("aten.eye.default", n.tensor.shape[-1], dtype=n.tensor.dtype, device=DEVICE)
    return flat(b, b.expand_to(one, n.tensor.shape), n["self"])


rewrite("aten.linalg_matrix_power.default", _matrix_power)
