"""What has to arrive where: the synapses of each projection, and what plasticity and routing need besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors
from pccompile.backends.netlist.simulate.operators import convolution


@dataclass(frozen=True)
class Arrival:
    """States of `pre` that units of `post` need, wired like `projection`.

    synapses: they are the messages of a projection; otherwise a factor of plasticity at the place of a synapse, or the
    winner that a route follows (`winners`: `pre` is then the select population).
    """

    pre: str
    post: str
    projection: Projection
    synapses: bool = True
    winners: bool = False


def arrivals(spec: Spec, learns: bool = True) -> tuple[Arrival, ...]:
    """Everything that arrives anywhere. A parameter lies with its synapses, at the units that they reach.

    learns: plasticity takes place there too.
    """
    found = [Arrival(p.pre, p.target, p) for p in spec.projections]
    found += [Arrival(p.by, p.target, p, False, True) for p in spec.projections if p.by is not None]
    sizes = {name: p.size for name, p in spec.populations.items()}
    uses: dict[str | None, list[Projection]] = {}
    for p in spec.projections:
        uses.setdefault(p.param, []).append(p)
    for rule in spec.plasticity if learns else ():
        found += _factors(rule, spec, uses.get(rule.param, []), sizes)
    return tuple(found)


def _factors(rule: Plasticity, spec: Spec, uses: list[Projection], sizes: dict[str, int]) -> Iterator[Arrival]:
    """The factors of a rule that must come to the copies of its parameter that have the rule's own geometry.

    What a rule changes in a copy of another one (a weight that is also read as a value) is no message of a tick.
    """
    if rule.pre is None:
        for name, population in spec.populations.items():
            if population.bias == rule.param and sizes[rule.post] == sizes[name]:
                yield _factor(rule.post, name)
        return
    for p in uses:
        here, there = (rule.pre, rule.post) if p.transpose else (rule.post, rule.pre)
        if sizes[here] == sizes[p.target] and sizes[there] == sizes[p.pre]:
            yield _factor(here, p.target)
            if there != p.pre:
                yield Arrival(there, p.target, msgspec.structs.replace(p, pre=there), False)


def _factor(pre: str, post: str) -> Arrival:
    return Arrival(pre, post, Projection(name="", pre=pre, post=f"{post}:in", op="one_to_one"), False)


def counts(a: Arrival, spec: Spec, tensors: Tensors, inside: np.ndarray) -> np.ndarray:
    """For each unit of `pre`, the synapses to those units of `post` that are `inside`, a mask in their shape."""
    p, size = a.projection, spec.populations[a.pre].size
    match p.op:
        case "one_to_one":
            return inside.reshape(-1).astype(np.int64)
        case "gather" | "route":
            return _indexed(a, tensors, inside.reshape(-1), size)
        case "sparse":
            index = tensors[str(p.index)]
            target, source = (index[1], index[0]) if p.transpose else (index[0], index[1])
            return np.bincount(source[inside.reshape(-1)[target]], minlength=size)
        case "dense":
            shape = tensors[str(p.param)].shape
            rows = inside.reshape(-1, shape[1 if p.transpose else 0]).sum(1)
            return np.repeat(rows, shape[0 if p.transpose else 1])
        case "conv":
            return _convolved(p, spec, tensors, inside)


def _indexed(a: Arrival, tensors: Tensors, inside: np.ndarray, size: int) -> np.ndarray:
    p = a.projection
    index = tensors[str(p.index)]
    if p.transpose:
        reached: np.ndarray = (np.append(inside, False)[index] & (index >= 0)).sum(1)
    else:
        reached = np.where(inside, (index >= 0).sum(1), 0)
    if a.winners:
        units = np.arange(len(index)) if p.elements is None else tensors[p.elements].reshape(-1)
        return np.bincount(units[reached > 0], minlength=size)
    if p.transpose:
        return reached
    slots = index[inside]
    return np.bincount(slots[slots >= 0], minlength=size)


def _convolved(p: Projection, spec: Spec, tensors: Tensors, inside: np.ndarray) -> np.ndarray:
    """The adjoint of the convolution with a kernel of ones. A group's channels all have the same number."""
    rank, shape = len(p.stride), spec.populations[p.pre].shape
    kernel = tensors[str(p.param)].shape
    channels = inside.shape[-rank - 1] // p.groups
    summed = inside.reshape(-1, p.groups, channels, *inside.shape[-rank:]).sum(2)
    x, ones = torch.from_numpy(summed.astype(np.float64)), torch.ones(p.groups, 1, *kernel[2:], dtype=torch.float64)
    back = msgspec.structs.replace(p, transpose=not p.transpose)
    got = convolution(back, shape, x[None], ones)
    each = shape[-rank - 1] // p.groups
    return np.repeat(got.numpy().round().astype(np.int64), each, axis=1).reshape(-1)


def turned(a: Arrival) -> Arrival:
    """The same synapses seen from their other end."""
    p = msgspec.structs.replace(
        a.projection, pre=a.post, post=f"{a.pre}:in", transpose=not a.projection.transpose, by=None
    )
    return Arrival(a.post, a.pre, p)


def number(p: Projection, spec: Spec, tensors: Tensors) -> int:
    """The synapses of a projection; of a choice all that it chooses from."""
    every = np.ones(spec.populations[p.target].shape, dtype=bool)
    return int(counts(Arrival(p.pre, p.target, p), spec, tensors, every).sum())


def fan_in(spec: Spec, tensors: Tensors) -> dict[str, np.ndarray]:
    """The synapses that reach each unit of each population, `[units]`."""
    found = {name: np.zeros(p.size, dtype=np.int64) for name, p in spec.populations.items()}
    for a in arrivals(spec):
        if a.synapses:
            found[a.post] += counts(turned(a), spec, tensors, np.ones(spec.populations[a.pre].shape, dtype=bool))
    return found


def fan_out(spec: Spec, tensors: Tensors) -> dict[str, np.ndarray]:
    """The synapses that each unit of each population sends to, `[units]`."""
    found = {name: np.zeros(p.size, dtype=np.int64) for name, p in spec.populations.items()}
    for a in arrivals(spec):
        if a.synapses:
            found[a.pre] += counts(a, spec, tensors, np.ones(spec.populations[a.post].shape, dtype=bool))
    return found
