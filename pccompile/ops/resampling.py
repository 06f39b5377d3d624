"""Interpolation and bags of embeddings: linear, with ATen's own kernels for the adjoint."""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.linear import linear
from pccompile.ops.registry import define, normal, rewrite
from pccompile.ops.signatures import schema


def _resized(args: Any, type_of: Any) -> TensorType:
    """The type that the interpolation started from; torch's own shape function for it would fix every free length."""
    return TensorType(tuple(args["input_size"]), type_of(args["grad_output"]).dtype)


def _interpolation(name: str, rank: int, *options: Any) -> None:
    kernel = f"aten.{name}_backward.default"
    define(kernel, "linear", infer=_resized)

    def rule(b: Builder, n: Node, e: Ref) -> Ref:
        rest = [n[a] for a, _ in schema(n.op)[2:]]
        return b(kernel, e, n["output_size"], b.shape(n["self"]), *rest)

    linear(
        f"aten.{name}.default",
        rule,
        lambda: (normal(2, 3, *(4, 5, 3)[:rank]), (7, 6, 5)[:rank], *options),
        wiring=False,
    )


for rank in (1, 2, 3):
    _interpolation(f"upsample_nearest{rank}d", rank)
    _interpolation(f"_upsample_nearest_exact{rank}d", rank)
for name, rank in (("linear1d", 1), ("bilinear2d", 2), ("trilinear3d", 3), ("bicubic2d", 2)):
    _interpolation(f"upsample_{name}", rank, False)
for name in ("bilinear2d", "bicubic2d"):
    _interpolation(f"_upsample_{name}_aa", 2, False)


PLACES = ("indices", "offsets")


def _bag(b: Builder, n: Node, errors: tuple[Ref | None, ...]) -> dict[str, Ref | None]:
    """Each row of the table gets the errors of the bags that it is in; so does the weight of each sample."""
    e, weight, per_sample = errors[0], n["weight"], n["per_sample_weights"]
    assert e is not None
    offset2bag, sizes, chosen = (b.get(Ref(n.name), i) for i in (1, 2, 3))
    rows = b.shape(weight)[0]
    options = (n["scale_grad_by_freq"], n["mode"], False, per_sample, n["padding_idx"])
    kernel, indices = "aten._embedding_bag_backward.default", n["indices"]
    saved = (offset2bag, sizes, chosen)
    messages: dict[str, Ref | None] = {"weight": b(kernel, e, indices, n["offsets"], *saved, rows, *options)}
    if per_sample is not None and per_sample in b.wants:
        kernel = "aten._embedding_bag_per_sample_weights_backward.default"
        messages["per_sample_weights"] = b(
            kernel, e, weight, indices, n["offsets"], offset2bag, n["mode"], n["padding_idx"]
        )
    return messages


def _indices() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0, 1, 2, 2, 4]), torch.tensor([0, 2])


define(
    "aten._embedding_bag.default",
    "linear",
    _bag,
    dense=PLACES,
    samples=(
        lambda: (normal(5, 3), *_indices(), False, 0),
        lambda: (normal(5, 3), *_indices(), False, 1),
        lambda: (normal(5, 3), *_indices(), False, 2),
        lambda: (normal(5, 3), *_indices(), False, 0, False, normal(5)),
    ),
)


def _whole_bag(b: Builder, n: Node) -> tuple[Ref, ...]:
    call = b("aten._embedding_bag.default", *n.args.values())
    return tuple(b.get(call, i) for i in range(4))


for name in ("_embedding_bag_backward", "_embedding_bag_per_sample_weights_backward"):
    define(f"aten.{name}.default", "linear", dense=PLACES)
rewrite("aten._embedding_bag_forward_only.default", _whole_bag, "linear")
