"""Whether projections and plasticity have the fields that they need, and fit what they join."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pccompile.backends.netlist.format import Plasticity, Projection, Tensors
from pccompile.backends.netlist.operations import OPERATIONS, RULES, Populations, operation

_UNSET = {"param": None, "index": None, "elements": None, "by": None, "with_": None, "subscripts": None,
          "stride": (), "padding": (), "dilation": (),
          "groups": 1}  # fmt: skip


def projection_problems(p: Projection, populations: Populations, tensors: Tensors) -> Iterator[str]:
    """What is wrong with a projection between two populations that are there."""
    needs, may = OPERATIONS[p.op].needs, OPERATIONS[p.op].may
    missing = [f for f in needs if getattr(p, f) == _UNSET[f]]
    without = [f for f in _UNSET if f not in (*needs, *may) and getattr(p, f) != _UNSET[f]]
    yield from (f"{p.op} needs {f.rstrip('_')}" for f in missing)
    yield from (f"{f.rstrip('_')} means nothing for {p.op}" for f in without)
    kinds = {"param": ("f", "numbers"), "index": ("i", "whole numbers"), "elements": ("i", "whole numbers")}
    wrong = [
        f"{field} {name} is not a tensor of {word}"
        for field, (kind, word) in kinds.items()
        if (name := getattr(p, field)) is not None and (name not in tensors or tensors[name].dtype.kind != kind)
    ]
    yield from wrong
    if not missing and not wrong:
        yield from operation(p, populations, tensors).problems()


def plasticity_problems(
    rule: Plasticity, named: Mapping[str, Projection], populations: Populations, tensors: Tensors
) -> Iterator[str]:
    """What is wrong with a rule whose populations are there."""
    array, kind, via = tensors.get(rule.param), RULES[rule.rule], named.get(str(rule.via))
    if array is None or array.dtype.kind != "f":
        yield f"{rule.param} is not a tensor of numbers"
    elif (rule.pre is None) == kind.has_pre:
        yield f"{rule.rule} {'needs' if kind.has_pre else 'has no'} pre"
    elif rule.axis is not None and kind.has_pre:
        yield f"axis means nothing for {rule.rule}"
    elif kind.takes_via and (via is None or via.op != kind.operation):
        yield f"{rule.rule} needs a {kind.operation} projection, and {rule.via} is none"
    else:
        yield from kind(rule, populations, via, tensors).problems()
