"""Random draws: made once for each prediction, from the same stream in the same order as eager torch makes them."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.fills import flat
from pccompile.ops.registry import define, rewrite
from pccompile.ops.trace import decompose

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
    define(name, "context", random=True)
define("aten.bernoulli.Tensor", "context", spell="torch.ops.aten.bernoulli.Tensor(self, p)", random=True)

define(
    "aten.poisson.default",
    "linear",
    lambda b, n, err: {"self": None},
    random=True,
    equation="poisson(x)",  # its derivative is 0 everywhere
)
BERNOULLI_LIKE = "pccompile.bernoulli_like.default"
SATURATION = 1.7580993408473766
"""What selu's negative side tends to, with the opposite sign."""


@functools.cache
def bernoulli_like() -> torch._ops.OpOverload:
    """The operator of Tensor.bernoulli_: drawn in the order of memory of x; torch.bernoulli draws in rows."""

    @torch.library.custom_op("pccompile::bernoulli_like", mutates_args=())
    def like(x: torch.Tensor, p: float = 0.5) -> torch.Tensor:
        return torch.empty_like(x).bernoulli_(p)

    @like.register_fake
    def _(x: torch.Tensor, p: float = 0.5) -> torch.Tensor:
        return torch.empty_like(x)

    found: torch._ops.OpOverload = torch.ops.pccompile.bernoulli_like.default
    return found


define(
    BERNOULLI_LIKE,
    "context",
    parameters=("x", "p"),
    infer=lambda args, type_of: type_of(args["x"]),
    spell="torch.empty_like(x).bernoulli_(p)",
    random=True,
)


def _bernoulli(b: Builder, n: Node) -> Ref:
    probability: Any = n["self"]
    entries = b("aten.new_empty.default", probability, b.shape(probability))
    return flat(b, b("aten.bernoulli.Tensor", entries, probability), probability)


rewrite("aten.bernoulli.default", _bernoulli)


def dropped(b: Builder, x: Ref, p: float, shape_of: Ref | None = None) -> Ref:
    """`x` with entries zeroed with probability `p` and the others scaled up; one mask for each prediction."""
    keep = 1 - p
    mask = b(BERNOULLI_LIKE, x if shape_of is None else shape_of, keep)
    return b.mul(x, b("aten.div.Tensor", mask, keep) if keep else mask)


def _dropout(b: Builder, n: Node) -> Any:
    x: Any = n["input"]
    return dropped(b, x, n["p"]) if n["train"] and n["p"] else x


rewrite("aten.dropout.default", _dropout, returns_argument=True)


def _alpha_dropout(b: Builder, n: Node) -> Any:
    """Entries set to selu's saturation, then mean and variance restored (Klambauer et al. 2017, arXiv 1706.02515)."""
    x, p = n["input"], n["p"]
    if not n["train"] or not p:
        return x
    if p == 1:
        return b.mul(x, b("aten.zeros_like.default", x))
    mask = b(BERNOULLI_LIKE, x, 1 - p)
    scale = ((SATURATION**2 * p + 1) * (1 - p)) ** -0.5
    shift = b.mul(b("aten.add.Scalar", mask, -1), SATURATION * scale)
    kept = b.mul(x, b.mul(mask, scale))
    return b("aten.add.Tensor", kept, b("aten.add.Scalar", shift, SATURATION * scale * p))


rewrite("aten.alpha_dropout.default", _alpha_dropout, returns_argument=True)


def _feature_dropout(b: Builder, n: Node) -> Any:
    x: Any = n["input"]
    if not n["train"] or not n["p"]:
        return x
    shape = b.shape(x)
    noise = b("aten.new_empty.default", x, (*shape[:2], *(1 for _ in shape[2:])))
    return dropped(b, x, n["p"], noise)


rewrite("aten.feature_dropout.default", _feature_dropout, returns_argument=True)
rewrite("aten.feature_alpha_dropout.default", decompose, returns_argument=True)


def _like(argument: str) -> Any:
    return lambda args, type_of: type_of(args[argument])


def _gamma(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    return {"self": b.mul(e, b("aten._standard_gamma_grad.default", n["self"], Ref(n.name)))}


define("aten._standard_gamma.default", "composite", _gamma, infer=_like("self"), random=True, equation="gamma(x)")
define("aten._sample_dirichlet.default", "context", infer=_like("self"), random=True)
define("aten._standard_gamma_grad.default", "context", infer=_like("self"))
define("aten._dirichlet_grad.default", "context", infer=_like("x"))
