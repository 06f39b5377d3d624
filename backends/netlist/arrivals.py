"""What has to arrive where: the synapses of each projection, and what plasticity and routing need besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors
from pccompile.backends.netlist.operations import OPERATIONS, operation


@dataclass(frozen=True)
class Arrival:
    """States of `pre` that units of `post` need, wired like `projection`.

    synapses: they are the messages of a projection; otherwise a factor of plasticity at the place of a synapse, or the
    winner that a route follows (`winners`: `pre` is then the select population), or the second factor of a product of
    states (`operand`).
    """

    pre: str
    post: str
    projection: Projection
    synapses: bool = True
    winners: bool = False
    operand: bool = False


def arrivals(spec: Spec, learns: bool = True) -> tuple[Arrival, ...]:
    """Everything that arrives anywhere. A parameter lies with its synapses, at the units that they reach.

    learns: plasticity takes place there too.
    """
    found = [Arrival(p.pre, p.target, p) for p in spec.projections]
    found += [
        Arrival(q.pre, q.target, q, synapses=False, operand=True)
        for p in spec.projections
        for q in OPERATIONS[p.op].readings(p)[1:]
    ]
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
    at_work = operation(a.projection, spec.populations, tensors)
    return at_work.chosen_by(inside) if a.winners else at_work.sent(inside)


def fan_in(spec: Spec, tensors: Tensors) -> dict[str, np.ndarray]:
    """The synapses that reach each unit of each population, `[units]`."""
    found = {name: np.zeros(p.size, dtype=np.int64) for name, p in spec.populations.items()}
    for p in spec.projections:
        found[p.target] += operation(p, spec.populations, tensors).fan_in()
    return found


def fan_out(spec: Spec, tensors: Tensors) -> dict[str, np.ndarray]:
    """The synapses that each unit of each population sends to, `[units]`; a product of states is sent to by both."""
    found = {name: np.zeros(p.size, dtype=np.int64) for name, p in spec.populations.items()}
    for a in arrivals(spec):
        if a.synapses or a.operand:
            found[a.pre] += counts(a, spec, tensors, np.ones(spec.populations[a.post].shape, dtype=bool))
    return found
