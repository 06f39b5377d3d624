"""What an operation is: its family, rule, spelling and test samples. One OpDef each, nothing elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from pccompile.ir import Arg, Dim, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.signatures import SIGNATURES, Signature

Family = Literal["elementwise", "linear", "multilinear", "selection", "composite", "context", "traced"]
Message = Ref | None | tuple["Ref | None", ...]
Rule = Callable[[Builder, Node, Any], Mapping[str, Message]]
Shapes = Callable[[Arg], tuple[Dim, ...]]
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
    spell                 Python source of the call over the names of the arguments, or a function of these that says
                          which; None: torch's own name for it. See MORE in backends/torch/spell.py
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

    What equations, costs and analyses ask:

    product               the two arguments whose matrices, or kernels, it multiplies; () where it is no such product
    operations            floating-point operations in products, from its arguments, their shapes and the result's
    sent                  the equations of its messages by argument, `{e}` for the error and `{weight}` for an argument
    transposes            its message, too, is a transpose
    distribution          a probability for each class, or its logarithm
    of_the_batch          it normalises by statistics of the whole batch, where its argument `training` says so
    averages              a mean, over `dim` or a `kernel_size`
    flat                  its derivative is 0 wherever it exists; rounds: its steps are those of rounding
    gradients             a kernel whose results are gradients: of an input, a weight and a bias

    What passes and backends ask:

    rows                  the argument of which each row gives one row of the result, rows being the first axis;
    along                 if not all other axes are left alone, the argument that says which ones are not
    adds_up               the argument whose rows are added up
    identity              a copy, or a name, of `self`
    permutes              a view that shows each entry of `self` once
    distributes           linear in one tensor, and to be written once for a sum of what it is applied to
    in_place              the method of a tensor that writes the result over `self`
    from_result           and its derivative is read off that result
    form_only             an argument of which it reads the shape and the type, and no number
    costly_slope          a kernel that multiplies by a slope which takes longer to compute than a product does
    returns_argument      it may return its very argument, where there is nothing to do
    """

    family: Family
    rule: Rule | None = None
    expand: Callable[[Builder, Node], Message] | None = None
    compose: Callable[[Builder, Node], Message] | None = None
    spell: str | Callable[[Mapping[str, Any]], str] | None = None
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
    product: tuple[str, ...] = ()
    operations: Callable[[Mapping[str, Arg], Shapes, tuple[Dim, ...]], Dim] | None = None
    sent: Mapping[str, str] = field(default_factory=dict)
    transposes: bool = False
    distribution: bool = False
    of_the_batch: bool = False
    averages: bool = False
    flat: bool = False
    rounds: bool = False
    gradients: bool = False
    rows: str = ""
    along: str = ""
    adds_up: str = ""
    identity: bool = False
    permutes: bool = False
    distributes: bool = False
    in_place: str = ""
    from_result: bool = False
    form_only: str = ""
    costly_slope: bool = False
    returns_argument: bool = False


OPS: dict[str, OpDef] = {}


def define(name: str, family: Family, rule: Rule | None = None, **fields: Any) -> OpDef:
    """Register an operation; `fields` are those of its OpDef. Raises ValueError where its name is taken.

    Of a kernel that rules call ("traced", without a rule) its own rule, where one is asked for, is traced.
    """
    if name in OPS:
        raise ValueError(f"{name} is defined twice")
    OPS[name] = SIGNATURES[name] = op = OpDef(name, family, rule, **fields)
    return op


def rewrite(name: str, expand: Callable[[Builder, Node], Any], family: Family = "composite", **fields: Any) -> OpDef:
    """Define an operation by others: expand(b, node) writes them."""
    return define(name, family, expand=expand, **fields)


def call_of(helper: str) -> Callable[[Mapping[str, Any]], str]:
    """Spells a call of the function `helper` of the generated file, with all arguments in order."""
    return lambda args: f"{helper}({', '.join(args)})"


def definition(op: str) -> OpDef:
    """What is known of the operation called `op`; where no file defines it, no more than that its rule is traced."""
    return OPS.get(op) or _unknown(op)


@functools.cache
def _unknown(op: str) -> OpDef:
    return OpDef(op, "traced")
