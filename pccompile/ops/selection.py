"""Selections: an index is chosen when the model predicts, and the message returns to the entry that was chosen."""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.linear import axis, reduced_dims, restore
from pccompile.ops.registry import define, normal, rewrite


def _max_pool(rank: int) -> None:
    name = f"aten.max_pool{rank}d_with_indices"
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
        chosen = b.get(Ref(n.name), 1)
        return {"self": b(f"{name}_backward.default", errors[0], n["self"], *(n[o] for o in options), chosen)}

    samples = (lambda: (normal(2, 3, *(5,) * rank), [2] * rank),)
    define(f"{name}.default", "selection", rule, samples=samples, results=("", "indices"))
    rewrite(
        f"aten.max_pool{rank}d.default",
        lambda b, n: b.get(b(f"{name}.default", n["self"], *(n[o] for o in options)), 0),
    )


_max_pool(2)
_max_pool(3)


def _reopened(b: Builder, n: Node, *tensors: Ref) -> tuple[Ref, ...]:
    """Results of a reduction along `dim`, that axis put back where it was dropped."""
    shape = b.shape(n["self"])
    if n.args.get("keepdim", True) or not shape:
        return tensors
    return tuple(b("aten.unsqueeze.default", t, axis(n["dim"], len(shape))) for t in tensors)


def _chosen(add: bool) -> Any:
    """The rule that takes the error of the entries that were chosen along `dim` back to their places.

    add: an entry may be chosen more than once.
    """

    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
        assert errors[0] is not None
        e, index = _reopened(b, n, errors[0], b.get(Ref(n.name), 1))
        scatter = "aten.scatter_add.default" if add else "aten.scatter.src"
        return {"self": b(scatter, b.zeros(b.type(n["self"])), n["dim"], index, e)}

    return rule


for name, samples in (
    ("aten.max.dim", (lambda: (normal(4, 3), 1), lambda: (normal(4, 3), 0, True))),
    ("aten.min.dim", (lambda: (normal(4, 3), -1),)),
    ("aten.median.dim", (lambda: (normal(4, 3), 1),)),
    ("aten.nanmedian.dim", (lambda: (normal(4, 3), 1, True),)),
    ("aten.mode.default", (lambda: (normal(4, 3), 1),)),
    ("aten.kthvalue.default", (lambda: (normal(4, 3), 2, 1),)),
    ("aten.topk.default", (lambda: (normal(4, 5), 2, 1),)),
    ("aten.sort.default", (lambda: (normal(4, 5), 1, True),)),
    ("aten.sort.stable", (lambda: (normal(4, 5), {"stable": True, "dim": 0}),)),
):
    define(name, "selection", _chosen(add=False), samples=samples)
for name in ("aten.cummax.default", "aten.cummin.default"):
    define(name, "selection", _chosen(add=True), samples=(lambda: (normal(4, 5), 1),))


def _shared(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    """The error of an extreme, shared evenly by all entries that reach it."""
    dims = reduced_dims(b, n)
    reached = b("aten.eq.Tensor", n["self"], restore(b, n, Ref(n.name)))
    count = b("aten.sum.dim_IntList", reached, dims, True) if dims else reached
    return {"self": b("aten.div.Tensor", b.mul(restore(b, n, e), reached), count)}


def _ties() -> torch.Tensor:
    return torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]]).double()


for name in ("amax", "amin"):
    define(
        f"aten.{name}.default",
        "selection",
        _shared,
        samples=(
            lambda: (normal(4, 3, 2), (0, -1)),
            lambda: (_ties(), (1,), True),
            lambda: (normal(4, 3),),
            lambda: (normal(),),
        ),
    )
for name in ("max", "min", "median"):
    define(f"aten.{name}.default", "selection", _shared, samples=(lambda: (normal(5, 3),), lambda: (_ties(),)))


def _adaptive(rank: int) -> None:
    name = f"aten.adaptive_max_pool{rank}d"

    def rule(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref]:
        return {"self": b(f"{name}_backward.default", errors[0], n["self"], b.get(Ref(n.name), 1))}

    define(f"{name}.default", "selection", rule, samples=(lambda: (normal(2, 3, *(5,) * rank), [2] * rank),))


_adaptive(2)
_adaptive(3)


def _where(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    zero = b("aten.zeros_like.default", e)
    condition = n["condition"]
    return {
        "self": b("aten.where.self", condition, e, zero) if n["self"] in b.wants else None,
        "other": b("aten.where.self", condition, zero, e) if n["other"] in b.wants else None,
    }


define(
    "aten.where.self",
    "selection",
    _where,
    samples=(lambda: (torch.tensor([[True], [False]]), normal(2, 3), normal(3)),),
)
define(
    "aten.masked_fill.Scalar",
    "selection",
    lambda b, n, e: {"self": b("aten.masked_fill.Scalar", e, n["mask"], 0)},
    spell="self.masked_fill(mask, value)",
    samples=(lambda: (normal(2, 3), torch.tensor([True, False, True]), -1.0),),
)
define(
    "aten.masked_fill.Tensor",
    "selection",
    lambda b, n, e: {
        "self": b("aten.masked_fill.Scalar", e, n["mask"], 0),
        "value": b.mul(e, n["mask"]) if n["value"] in b.wants else None,
    },
    samples=(lambda: (normal(2, 3), torch.tensor([True, False, True]), normal()),),
)
