"""Selections: an index is chosen when the model predicts, and the message returns to the entry that was chosen."""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.linear import axis
from pccompile.ops.registry import OpDef, define, rewrite


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _max_pool(rank: int) -> None:
    name = f"aten.max_pool{rank}d_with_indices"
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
        chosen = b.get(Ref(n.name), 1)
        return {"self": b(f"{name}_backward.default", errors[0], n["self"], *(n[o] for o in options), chosen)}

    define(OpDef(f"{name}.default", "selection", rule, samples=(lambda: (_x(2, 3, *(5,) * rank), [2] * rank),)))
    rewrite(f"aten.max_pool{rank}d.default", lambda b, n: b.get(b(f"{name}.default", n["self"], *(n[o] for o in options)), 0))


_max_pool(2)
_max_pool(3)


def _chosen(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
    """The error of the entries that were chosen along `dim`, back in their places."""
    e: Any = errors[0]
    index = b.get(Ref(n.name), 1)
    shape = b.shape(n["self"])
    if not n.args.get("keepdim", True) and shape:
        dim = axis(n["dim"], len(shape))
        e, index = (b("aten.unsqueeze.default", t, dim) for t in (e, index))
    return {"self": b("aten.scatter.src", b.zeros(b.type(n["self"])), n["dim"], index, e)}


for name, samples in (
    ("aten.max.dim", (lambda: (_x(4, 3), 1), lambda: (_x(4, 3), 0, True))),
    ("aten.min.dim", (lambda: (_x(4, 3), -1),)),
    ("aten.topk.default", (lambda: (_x(4, 5), 2, 1),)),
    ("aten.sort.default", (lambda: (_x(4, 5), 1, True),)),
):
    define(OpDef(name, "selection", _chosen, samples=samples))


def _where(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    zero = b("aten.zeros_like.default", e)
    condition = n["condition"]
    return {
        "self": b("aten.where.self", condition, e, zero) if n["self"] in b.wants else None,
        "other": b("aten.where.self", condition, zero, e) if n["other"] in b.wants else None,
    }


define(
    OpDef(
        "aten.where.self",
        "selection",
        _where,
        samples=(lambda: (torch.tensor([[True], [False]]), _x(2, 3), _x(3)),),
    )
)
define(
    OpDef(
        "aten.masked_fill.Scalar",
        "selection",
        lambda b, n, e: {"self": b.reduce_to(b("aten.masked_fill.Scalar", e, n["mask"], 0), b.type(n["self"]))},
        spell=lambda t, a: f"{t['self']}.masked_fill({t['mask']}, {t['value']})",
        samples=(lambda: (_x(2, 3), torch.tensor([True, False, True]), -1.0),),
    )
)
