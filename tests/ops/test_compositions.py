"""What every composite is in simple operations: its results and gradients are those of torch's own operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.harness import _named, arguments, differentiate
from ops.references import REFERENCES
from torch import Tensor

from pccompile.backends.netlist import has_circuit
from pccompile.ir import Graph, Node, Ref
from pccompile.ops import OPS, Typer, bind, overload
from pccompile.ops.interpret import interpret
from pccompile.passes.simplify import simplify

SAMPLES = [(name, i) for name, op in OPS.items() if op.compose for i in range(len(op.samples))]


def test_every_composition_has_samples() -> None:
    assert {name for name, _ in SAMPLES} == {name for name, op in OPS.items() if op.compose}


@pytest.mark.parametrize("name, sample", SAMPLES)
def test_composed_equals_fused(name: str, sample: int) -> None:
    tensors: dict[str, Tensor] = {}
    args, kwargs = arguments(OPS[name].samples[sample])
    bound = bind(name, [_named(a, tensors) for a in args], {k: _named(a, tensors) for k, a in kwargs.items()})
    typer = Typer()
    types = {k: typer.type_of(t) for k, t in tensors.items()}
    node = Node("result", name, bound, typer.infer(name, bound, types))
    whole = node.type if isinstance(node.type, tuple) else (node.type,)
    parts = [Node(f"part{i}", "getitem", {"of": Ref("result"), "index": i}, t) for i, t in enumerate(whole) if t]
    nodes = (node, *parts) if isinstance(node.type, tuple) else (node,)
    outputs = tuple(p.name for p in parts) if isinstance(node.type, tuple) else ("result",)
    graph = simplify(Graph(types, {}, {}, nodes, outputs), typer, has_circuit)
    assert all(has_circuit(n.op) or n.op == "getitem" or not n.inputs for n in graph.nodes)
    leaves = [k for k, t in tensors.items() if t.is_floating_point() and k not in _statistics(bound)]
    reference = REFERENCES.get(name) or overload(name)
    expected, gradients, errors = differentiate(reference, name, bound, tensors, leaves)
    own: dict[str, Any] = {k: t.detach().clone().requires_grad_(k in leaves) for k, t in tensors.items()}
    for n in graph.nodes:
        own[n.name] = interpret(n, own)
    found = [own[o] for o in graph.outputs]
    for f, e in zip(found, expected, strict=True):
        if e is not None and e.numel():  # what the reference does not say
            torch.testing.assert_close(f.detach(), e, rtol=1e-9, atol=1e-11)
    pairs = [(f, e) for f, e in zip(found, errors, strict=True) if e is not None]
    sent = torch.autograd.grad(
        [f for f, _ in pairs], [own[k] for k in leaves], [e for _, e in pairs], allow_unused=True
    )
    for leaf, gradient in zip(leaves, sent, strict=True):
        if leaf in gradients:
            torch.testing.assert_close(gradient, gradients[leaf], rtol=1e-9, atol=1e-11)


def _statistics(bound: dict[str, Any]) -> set[Any]:
    return {bound.get(k) for k in ("running_mean", "running_var")}
