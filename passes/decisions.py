"""Which branches must be taken for a loss to reach a parameter: autograd sends nothing through the one that is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product

from pccompile.ir import ALWAYS, Condition, Decision, Fragment, Graph, Node
from pccompile.passes.activity import passes_on

COND = "pcc.cond"
MOST = 64
"""A condition of more alternatives counts as one that always holds: what it guards then has the gradient 0."""


def decisions(graph: Graph) -> dict[str, Condition]:
    """For each wanted leaf, when a loss reaches it, unless that is always; without alternatives: never."""
    if not any(n.op == COND for n in graph.nodes):
        return {}
    found = _reached(graph.nodes, dict.fromkeys(graph.outputs, ALWAYS))
    conditions = {name: found.get(name, frozenset()) for name in sorted(graph.wanted)}
    return {name: condition for name, condition in conditions.items() if condition != ALWAYS}


def _reached(nodes: Iterable[Node], seeds: Mapping[str, Condition]) -> dict[str, Condition]:
    """When an error reaches each value, from when it reaches those of `seeds`."""
    found = dict(seeds)
    parts: dict[str, dict[int, Condition]] = {}

    def reach(name: str, when: Condition) -> None:
        found[name] = _either(found.get(name, frozenset()), when)

    for n in reversed(tuple(nodes)):
        if n.name not in found:
            continue
        when = found[n.name]
        if n.op == "getitem":
            source, index = str(n["of"]), n["index"]
            assert isinstance(index, int)
            known = parts.setdefault(source, {})
            known[index] = _either(known.get(index, frozenset()), when)
            reach(source, when)
        elif n.op == COND:
            for operand, condition in _branches(n, parts.get(n.name, {})):
                reach(operand, condition)
        elif passes_on(n):
            for name in set(n.inputs):
                reach(name, when)
    return found


def _branches(cond: Node, results: Mapping[int, Condition]) -> Iterable[tuple[str, Condition]]:
    """The operands of a branch that are reached from its results, and when."""
    operands = cond["operands"]
    assert isinstance(operands, tuple)
    for side, taken in (("yes", True), ("no", False)):
        branch = cond[side]
        assert isinstance(branch, Fragment)
        chosen = frozenset((frozenset((Decision(cond.name, -1, taken),)),))
        for index, when in results.items():
            inside = _reached(branch.nodes, {branch.results[index]: ALWAYS})
            for parameter, operand in zip(branch.parameters, operands, strict=True):
                if parameter in inside:
                    outside = _outside(inside[parameter], branch, cond.name)
                    yield str(operand), _both(_both(when, chosen), outside)


def _outside(condition: Condition, branch: Fragment, cond: str) -> Condition:
    """A condition inside of a branch, whose decisions the call hands out among its results."""
    place: dict[object, int] = {}
    nodes = {n.name: n for n in branch.nodes}
    first = len(branch.results) - branch.decisions
    for i, result in enumerate(branch.results[first:], first):
        n = nodes.get(result)
        inner = (str(n["of"]), n["index"]) if n is not None and n.op == "getitem" else None
        place[inner or result] = i

    def index_of(d: Decision) -> int:
        return place[nodes[d.cond]["pred"] if d.result < 0 else (d.cond, d.result)]

    return frozenset(frozenset(Decision(cond, index_of(d), d.taken) for d in all_) for all_ in condition)


def _both(a: Condition, b: Condition) -> Condition:
    return _shortest(x | y for x, y in product(a, b))


def _either(a: Condition, b: Condition) -> Condition:
    return _shortest((*a, *b))


def _shortest(alternatives: Iterable[frozenset[Decision]]) -> Condition:
    """Alternatives without those that others imply, and without those that cannot be."""
    possible = {a for a in alternatives if not any(Decision(d.cond, d.result, not d.taken) in a for d in a)}
    shortest = frozenset(a for a in possible if not any(b < a for b in possible))
    return ALWAYS if len(shortest) > MOST else shortest
