"""Draws that change with their parameters, by implicit reparameterisation: those behind gamma, beta and Dirichlet.

A sample is a smooth function of its parameters at a fixed draw, and torch has that derivative as a kernel
(Figurnov, Mohamed and Mnih 2018, arXiv:1805.08498). Beta samples are Dirichlet ones of two entries.
"""

from __future__ import annotations

from typing import Any

from pccompile.ir import Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.registry import OpDef, define


def _like(argument: str) -> Any:
    return lambda args, type_of: type_of(args[argument])


def _gamma(b: Builder, n: Node, e: Ref) -> dict[str, Ref]:
    return {"self": b.mul(e, b("aten._standard_gamma_grad.default", n["self"], Ref(n.name)))}


define(
    OpDef("aten._standard_gamma.default", "composite", _gamma, infer=_like("self"), random=True, equation="gamma(x)")
)
define(OpDef("aten._sample_dirichlet.default", "context", infer=_like("self"), random=True))
define(OpDef("aten._standard_gamma_grad.default", "context", infer=_like("self")))
define(OpDef("aten._dirichlet_grad.default", "context", infer=_like("x")))
