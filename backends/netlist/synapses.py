"""The synapses of projections and rules one by one: which unit reads which, through which entry of a parameter."""

from __future__ import annotations

import numpy as np

from pccompile.backends.netlist.format import Plasticity, Projection, Spec, Tensors
from pccompile.backends.netlist.operations import Synapses, learning_rule, operation
from pccompile.limits import exceeded, limit


def count(p: Projection, spec: Spec, tensors: Tensors) -> int:
    """How many synapses a projection has, at most: those beyond the edge of a convolution are counted too."""
    return operation(p, spec.populations, tensors).count()


def work(spec: Spec, tensors: Tensors) -> int:
    """What a tick costs: an operation for each synapse, 50 for each unit."""
    return sum(count(p, spec, tensors) for p in spec.projections) + 50 * sum(p.size for p in spec.populations.values())


def synapses(p: Projection, spec: Spec, tensors: Tensors) -> Synapses:
    """The synapses of a projection, of a choice all those that it chooses from, in the order of the map's own tensors.

    Raises CompileError where they are too many to be listed.
    """
    if (number := count(p, spec, tensors)) > limit("synapses"):
        raise exceeded("synapses", number, limit("synapses"), f"listing projection {p.name} one by one")
    return operation(p, spec.populations, tensors).synapses()


def weights(p: Projection, found: Synapses, tensors: Tensors) -> np.ndarray:
    """The weights of the synapses that were found of a projection, gain included; states are none."""
    weighted = found.other is not None and p.param is not None
    return p.gain * (tensors[str(p.param)].ravel()[found.other] if weighted else np.ones(len(found.post)))


def matrix(p: Projection, spec: Spec, tensors: Tensors) -> np.ndarray:
    """The synapses of a projection as a matrix of weights, [post, pre]; those of a pair of units are added up."""
    found = synapses(p, spec, tensors)
    entries = np.zeros((spec.populations[p.target].size, spec.populations[p.pre].size))
    np.add.at(entries, (found.post, found.pre), weights(p, found, tensors))
    return entries


def fan_in(p: Projection, spec: Spec, tensors: Tensors) -> np.ndarray:
    """The number of synapses of `p` on each unit of the population that it reaches; a route has one for each slot."""
    return operation(p, spec.populations, tensors).fan_in()


def changes(rule: Plasticity, spec: Spec, tensors: Tensors) -> Synapses:
    """What a rule adds up for each entry of its parameter, sorted: units of its post times units of its pre."""
    return learning_rule(rule, spec, tensors).synapses().sorted()
