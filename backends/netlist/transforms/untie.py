"""Feedback with parameters of its own: no synapse knows the weight of another."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Plasticity, Projection, Spec
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.transforms import fresh
from pccompile.diagnostics import CompileError

Mode = Literal["kolen-pollack", "mirror"]
replace = msgspec.structs.replace


def untie(
    net: Netlist,
    mode: Mode = "kolen-pollack",
    init: Literal["transpose", "random"] = "transpose",
    decay: float = 0.01,
    seed: int = 0,
) -> Netlist:
    r"""`net` whose feedback has, for each parameter W that learns, another parameter B of the same shape.

        mirror         B gets the same update as W: B − W never changes, and is 0 if B starts as W
        kolen-pollack  both also decay by rate · decay in a learning tick, so that B − W vanishes whatever B starts as

    init: B is W, or random numbers of the same root mean square. A parameter that acts in several places has one B for
    all of its feedback.
    Sources: Kolen & Pollack 1994; Akrout et al. 2019, arXiv 1904.05391.
    """
    if mode not in ("kolen-pollack", "mirror") or init not in ("transpose", "random"):
        raise CompileError(f"there is no mode {mode!r} with init {init!r}")
    if mode == "kolen-pollack" and not 0 < decay < 1:
        raise CompileError(f"decay {decay} is not between 0 and 1: feedback would not come to match")
    spec, rng = net.spec, np.random.default_rng(seed)
    own: dict[str, str] = {}
    tensors, described = dict(net.tensors), dict(spec.tensors)
    for w in dict.fromkeys(str(p.param) for p in spec.projections if is_feedback(p, spec)):
        own[w] = fresh(f"{w}.feedback", tensors)
        tensors[own[w]] = array = net.tensors[w].copy()
        if init == "random":
            array[...] = rng.standard_normal(array.shape) * np.sqrt(np.mean(array**2) if array.size else 0.0)
        described[own[w]] = replace(spec.tensors[w], path=None)
    projections = [replace(p, param=own[str(p.param)]) if is_feedback(p, spec) else p for p in spec.projections]
    rules = _decaying(spec.plasticity, own, decay) if mode == "kolen-pollack" else spec.plasticity
    rules = (*rules, *(replace(r, param=own[r.param]) for r in rules if r.param in own))
    made = replace(spec, projections=tuple(projections), plasticity=rules, tensors=described)
    return Netlist(made, tensors, net.drawn)


def is_feedback(p: Projection, spec: Spec) -> bool:
    """Whether a projection brings errors back through a parameter that learns."""
    return p.param in spec.plastic() and spec.populations[p.target].role == "error"


def _decaying(rules: tuple[Plasticity, ...], own: dict[str, str], decay: float) -> tuple[Plasticity, ...]:
    """The rules, of which the first of each parameter that has feedback also decays it."""
    first = {r.param: i for i, r in reversed(list(enumerate(rules))) if r.param in own}
    return tuple(replace(r, decay=decay) if first.get(r.param) == i else r for i, r in enumerate(rules))
