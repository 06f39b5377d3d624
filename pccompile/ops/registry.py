"""What an operation is: its family, rule, spelling and test samples. One OpDef each, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pccompile.ir import Arg, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.signatures import SIGNATURES, Signature

Family = Literal["elementwise", "linear", "multilinear", "selection", "composite", "context", "traced"]
Message = Ref | None | tuple["Ref | None", ...]
Rule = Callable[[Builder, Node, Any], Mapping[str, Message]]
Sample = Callable[[], tuple[Any, ...]]
"""Makes an operator's arguments, float tensors in float64. Where the last is a dict, it holds keyword arguments."""


def normal(*shape: int) -> torch.Tensor:
    """Standard normal numbers in float64, of which samples are made."""
    return torch.randn(shape, dtype=torch.float64)


@dataclass(frozen=True)
class OpDef(Signature):
    """One operation of the dialect, besides how it is called.

    rule(b, node, err)    writes J_iᵀ err for each argument i that carries an error, as operations, with the builder `b`
    expand(b, node)       writes the operation in terms of others; it is then gone after canonicalisation
    compose(b, node)      writes an operation that has a fused rule in simple ones, for a backend without its kernel
    spell(texts, args)    Python source of the call, from the source of each argument; None: the generic spelling
    wiring                moves entries about and computes nothing: it gets no value and no error of its own
    equation              what a reader sees, `x` and `y` for the arguments
    dense                 arguments that the kernel reads as they lie in memory, in place of what their strides say
    samples               arguments for the test that runs every operation
    helper                source of functions that the generated file needs to run it
    formula(node)         the sympy expression of an elementwise operation
    ends_layer            ends a layer, as a nonlinearity does, though it is not elementwise
    activation            a nonlinearity of one value, as torch.nn has them
    recurrent             a layer over time: errors pass its weights and nonlinearities on their way to these weights
    misjudged             why eager torch's own gradient through it is no reference; "" where it is one
    """

    family: Family
    rule: Rule | None = None
    expand: Callable[[Builder, Node], Message] | None = None
    compose: Callable[[Builder, Node], Message] | None = None
    spell: Callable[[Mapping[str, Any], Mapping[str, Arg]], str] | None = None
    wiring: bool = False
    equation: str = ""
    dense: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    helper: str = ""
    ends_layer: bool = False
    activation: bool = False
    recurrent: bool = False
    misjudged: str = ""
    formula: Callable[[Node], Any] | None = None


OPS: dict[str, OpDef] = {}


def define(op: OpDef) -> OpDef:
    """Register `op`. Raises ValueError where its name is taken."""
    if op.name in OPS:
        raise ValueError(f"{op.name} is defined twice")
    OPS[op.name] = SIGNATURES[op.name] = op
    return op


def rewrite(name: str, expand: Callable[[Builder, Node], Any], family: Family = "composite") -> OpDef:
    """Define the operation `name` by others: expand(b, node) writes them."""
    return define(OpDef(name, family, expand=expand))


def family_of(op: str) -> Family:
    """The family of the operation called `op`; 'traced' where no file defines it."""
    return OPS[op].family if op in OPS else "traced"
