"""What each parameter's update is made of: which factors its rule multiplies, read off the rules of its vertices.

    two-factor      error × presynaptic values                  the delta rule, Hebbian in error and activity
    three-factor    error × presynaptic values × own state      with the slope of an activation function, for instance
    error and state error × own state                           what a bias before an activation function takes
    error only      the error                                   what another bias takes

A rule that reads other parameters that learn, such as the gain of a normalisation behind a weight, is none of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pccompile.analysis.factors import computed_of, factors
from pccompile.ir import PCGraph, Vertex


@dataclass(frozen=True)
class Plasticity:
    """The update of one parameter.

    kind: one of "two-factor", "three-factor", "error and state", "error only", "reads other weights" and, where its
    gradient is 0, "fixed". presynaptic: the values and inputs that its rules multiply the error by. own_state: whether
    they read what the vertex itself has computed. weights: other parameters that learn which they read. places: how
    many vertices read the parameter; where there are more than one, their updates are added up.
    """

    name: str
    kind: str
    presynaptic: tuple[str, ...]
    own_state: bool
    weights: tuple[str, ...]
    places: int


def plasticity(pc: PCGraph) -> tuple[Plasticity, ...]:
    """The update of every parameter that learns, in the order of the graph."""
    children, origin = pc.children(), pc.graph.origin
    learn = {n for n in pc.graph.params if n in pc.graph.wanted}
    found, activity = [], _from_inputs(pc)
    for name in (n for n in pc.graph.params if n in pc.reached):
        presynaptic, weights, own = dict[str, None](), dict[str, None](), False
        for v in children[name]:
            for parent, of_own in _factors(v, name, learn):
                if of_own:
                    own = True
                elif parent in learn:
                    weights |= {origin[parent]: None} if parent != name else {}
                elif parent in activity:
                    presynaptic[parent] = None
        kind = _kind(bool(children[name]), bool(weights), bool(presynaptic), own)
        found.append(Plasticity(origin[name], kind, tuple(presynaptic), own, tuple(weights), len(children[name])))
    return tuple(found)


def _kind(reached: bool, weights: bool, presynaptic: bool, own: bool) -> str:
    if not reached:
        return "fixed"
    if weights:
        return "reads other weights"
    if not presynaptic:
        return "error and state" if own else "error only"
    return "three-factor" if own else "two-factor"


def _factors(v: Vertex, name: str, learn: set[str]) -> Iterator[tuple[str, bool]]:
    """The parents that the rule for a parameter multiplies by; True where through what the vertex computes of weights.

    A function of presynaptic values alone, such as a transpose, is those values; one of weights too is own state.
    """
    behind = computed_of(v)
    for read in sorted(factors(v, name)):
        of_weights = read not in v.parents and bool(behind[read] & learn)
        yield from ((p, of_weights) for p in sorted(behind[read]))


def _from_inputs(pc: PCGraph) -> set[str]:
    """The vertices, the inputs, and what is computed of inputs before inference."""
    found = {*pc.names, *pc.graph.inputs}
    for n in pc.context:
        found |= {n.name} if found & set(map(str, n.inputs)) else set()
    return found
