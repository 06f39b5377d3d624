"""Random draws: made once for each prediction, from the same stream in the same order as eager torch makes them."""

from __future__ import annotations

from typing import Any

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.fills import flat
from pccompile.ops.registry import OpDef, define, rewrite

for name in (
    "aten.bernoulli.p",
    "aten.rand.default",
    "aten.randn.default",
    "aten.rand_like.default",
    "aten.randn_like.default",
    "aten.randint.default",
    "aten.randint.low",
    "aten.randint_like.default",
    "aten.randint_like.low_dtype",
    "aten.randperm.default",
    "aten.normal_functional.default",
    "aten.multinomial.default",
):
    define(OpDef(name, "context", random=True))
define(
    OpDef(
        "aten.bernoulli.Tensor",
        "context",
        spell=lambda t, a: f"torch.ops.aten.bernoulli.Tensor({t['self']}, {t['p']})",
        random=True,
    )
)

define(
    OpDef(
        "aten.poisson.default", "linear", lambda b, n, err: {"self": None}, random=True, equation="poisson(x)"
    )  # its derivative is 0 everywhere
)
rewrite("aten.bernoulli.default", lambda b, n: flat(b, b("aten.bernoulli.Tensor", n["self"], n["self"]), n["self"]))


def dropped(b: Builder, x: Ref, p: float, shape_of: Ref | None = None) -> Ref:
    """`x` with entries zeroed with probability `p` and the others scaled up; one mask for each prediction."""
    keep = 1 - p
    mask = b("aten.bernoulli.p", x if shape_of is None else shape_of, keep)
    return b.mul(x, b("aten.div.Tensor", mask, keep) if keep else mask)


def _dropout(b: Builder, n: Node) -> Any:
    x: Any = n["input"]
    return dropped(b, x, n["p"]) if n["train"] and n["p"] else x


rewrite("aten.dropout.default", _dropout)


def _feature_dropout(b: Builder, n: Node) -> Any:
    x: Any = n["input"]
    if not n["train"] or not n["p"]:
        return x
    shape = b.shape(x)
    noise = b("aten.new_empty.default", x, (*shape[:2], *(1 for _ in shape[2:])))
    return dropped(b, x, n["p"], noise)


rewrite("aten.feature_dropout.default", _feature_dropout)
