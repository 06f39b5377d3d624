r"""Precisions of vertices: how much a squared error weighs, ½ Π ε² − ½ log Π for each element.

A number stands in the energy itself. A tensor, and a precision that is learned, are a slot of the vertex that lasts
between calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pccompile.diagnostics import CompileError, RuleError, printable
from pccompile.ir import Energy, Lasting, Vertex
from pccompile.ops.energies import LearnedPrecision, energy

Weight = float | Tensor | LearnedPrecision
Precision = Weight | Mapping[str, Weight] | None
"""One precision for all hidden vertices, or a table by vertex or module path."""
SLOT = "precision"
HINT = "a number above 0, a tensor of them for the elements of one sample, or pccompile.learned_precision(2.0, 2.0)"


def weighted(v: Vertex, weight: Any, free: bool) -> tuple[Energy, Lasting | None]:
    """The energy of a vertex with a precision, and the slot that it reads.

    free: whether the value of the vertex moves. Raises CompileError for what is no precision of this vertex.
    """
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        if not (math.isfinite(weight) and weight > 0):
            raise CompileError(f"precision of {v.name} is {weight}", v.where, hint="above 0")
        return energy("gaussian", precision=weight), None
    if isinstance(weight, Tensor):
        return _of_slot("tensor"), _fixed(v, weight)
    if isinstance(weight, LearnedPrecision):
        return _of_slot("learned"), _learned(v, weight, free)
    raise CompileError(f"precision of {v.name} is {printable(repr(weight), 60)}", v.where, HINT)


def _of_slot(kind: str) -> Energy:
    """½ Π ε² − ½ log Π, Π the slot."""
    density, send = f"({SLOT} * error ** 2 - log({SLOT})) / 2", f"{SLOT} * error"
    return replace(energy("gaussian"), name=f"gaussian, {kind} precision", density=density, send=send, hold=send,
                   parameters=())  # fmt: skip


def _fixed(v: Vertex, weight: Tensor) -> Lasting:
    """A precision that is a tensor."""
    shape, own = tuple(weight.shape), v.type.shape[1:]
    others = [d for n, d in zip(reversed(shape), reversed(own), strict=False) if n not in (1, d)]
    if len(shape) > len(own) or others:
        what = f"precision of {v.name} is a tensor {list(shape)}, and a sample of {v.name} is {list(own)}"
        free = len(shape) <= len(own) and not all(isinstance(d, int) for d in others)
        raise (RuleError if free else CompileError)(what, v.where, hint="its shape stretches to that of one sample")
    if weight.is_complex() or weight.dtype == torch.bool or weight.is_meta:
        raise CompileError(f"precision of {v.name} is a tensor of {weight.dtype}", v.where, hint="give real numbers")
    if not bool((weight.isfinite() & (weight > 0)).all()):
        worst = weight[~(weight.isfinite() & (weight > 0))].flatten()[0].item()
        raise CompileError(f"precision of {v.name} is {worst} at an element", v.where, hint="above 0")
    return Lasting(v.name, SLOT, weight.detach())


def _learned(v: Vertex, how: LearnedPrecision, free: bool) -> Lasting:
    """A precision that learning moves to its fixed point Π = (a + ½) / (b + ½ ⟨ε²⟩)."""
    if free and not how.rate:
        what = f"the learned precision of {v.name} has no prior, and its value is free"
        what += ": F = ½ Π ε² − ½ log Π falls for ever as Π rises and ε goes to 0"
        raise CompileError(what, v.where, hint="pccompile.learned_precision(shape=2.0, rate=2.0), a Gamma prior")
    mean = "average" if how.single else "mean"
    change = f"{how.step!r} * ({how.shape + 0.5!r} - {SLOT} * ({how.rate!r} + {mean}(error ** 2) / 2))"
    start = how.shape / how.rate if how.rate else 1.0
    return Lasting(v.name, SLOT, start, how.single, f"{SLOT} * exp({change})")
