"""The operations of projections and the rules of plasticity, each a class that says all there is to say about it."""

from __future__ import annotations

from collections.abc import Mapping

from pccompile.backends.netlist.format import Operator, Plasticity, Projection, Rule, Spec, Tensors
from pccompile.backends.netlist.operations.base import Change, LearningRule, Message, Operation, Populations, Shape
from pccompile.backends.netlist.operations.conv import Conv, Correlate
from pccompile.backends.netlist.operations.copy import Copy, bias_entries
from pccompile.backends.netlist.operations.dense import Dense, Outer
from pccompile.backends.netlist.operations.einsum import Einsum
from pccompile.backends.netlist.operations.one_to_one import OneToOne
from pccompile.backends.netlist.operations.sparse import Paired, Sparse
from pccompile.backends.netlist.operations.synapse_list import Synapses
from pccompile.backends.netlist.operations.table import Gather, Route

OPERATIONS: Mapping[Operator, type[Operation]] = {
    kind.name: kind for kind in (OneToOne, Gather, Sparse, Dense, Conv, Route, Einsum)
}
"""All operations, by the name that a projection has them by."""

RULES: Mapping[Rule, type[LearningRule]] = {kind.name: kind for kind in (Outer, Correlate, Copy, Paired)}
"""All rules, by name."""


def operation(p: Projection, populations: Populations, tensors: Tensors) -> Operation:
    """The operation of a projection, at work there."""
    return OPERATIONS[p.op](p, populations, tensors)


def learning_rule(rule: Plasticity, spec: Spec, tensors: Tensors) -> LearningRule:
    """A rule of a circuit, at work there."""
    return RULES[rule.rule](rule, spec.populations, spec.named().get(rule.via or ""), tensors)
