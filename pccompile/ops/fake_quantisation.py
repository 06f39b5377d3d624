"""Fake quantisation: rounded to a grid forwards, straight through backwards where the grid reaches.

Rounding has the derivative 1 here by agreement (Bengio et al. 2013, arXiv:1308.3432). Where scale and zero point learn
too, their gradients are those of torch's kernels (Esser et al. 2020, arXiv:1902.08153).
"""

from __future__ import annotations

from typing import Any

import torch

from pccompile.ir import DEVICE, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Message, define, normal, rewrite


def _masked(args: Any, type_of: Any) -> tuple[TensorType, TensorType]:
    type_ = type_of(args["self"])
    return type_, TensorType(type_.shape, torch.bool)


def _straight(b: Builder, n: Node, err: Any) -> dict[str, Message]:
    sent: dict[str, Message] = dict.fromkeys(("scale", "zero_point"))
    return sent | {"self": b.mul(err[0], b.get(Ref(n.name), 1))}


for name in (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
):
    samples = (lambda: (normal(4, 3), 0.1, 0, -8, 7),) if name == "fake_quantize_per_tensor_affine_cachemask" else ()
    define(f"aten.{name}.default", "composite", _straight, infer=_masked, results=("", "mask"), samples=samples)

rewrite(
    "aten.fake_quantize_per_tensor_affine.default",
    lambda b, n: b.get(b("aten.fake_quantize_per_tensor_affine_cachemask.default", *n.args.values()), 0),
)


def _with_tensors(b: Builder, n: Node) -> Ref:
    on = b("aten.ones.default", (1,), dtype=torch.int64, device=DEVICE)
    first = (n["self"], n["scale"], n["zero_point"], on, n["quant_min"], n["quant_max"])
    return b.get(b("aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default", *first), 0)


rewrite("aten.fake_quantize_per_tensor_affine.tensor_qparams", _with_tensors)
rewrite(
    "aten.fake_quantize_per_channel_affine.default",
    lambda b, n: b.get(b("aten.fake_quantize_per_channel_affine_cachemask.default", *n.args.values()), 0),
)


def _learnt(b: Builder, n: Node, err: Ref) -> dict[str, Message]:
    name = n.op.removesuffix(".default")
    sent = b(f"{name}_backward.default", err, *n.args.values())
    return {a: b.get(sent, i) for i, a in enumerate(("self", "scale", "zero_point"))}


for name in ("tensor", "channel"):
    operator = f"aten._fake_quantize_learnable_per_{name}_affine"
    define(f"{operator}.default", "composite", _learnt, infer=lambda args, type_of: type_of(args["self"]))
    define(
        f"{operator}_backward.default",
        "composite",
        infer=lambda args, type_of: tuple(type_of(args[a]) for a in ("self", "scale", "zero_point")),
    )
