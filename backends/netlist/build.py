"""A netlist from a graph of simple operations: value units, output errors, then the error circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pccompile.backends.netlist.feedback import ErrorCircuit
from pccompile.backends.netlist.format import Phase, Spec
from pccompile.backends.netlist.losses import Loss, Outputs
from pccompile.backends.netlist.lower import Lowering
from pccompile.backends.netlist.lower.custom import add_rules
from pccompile.backends.netlist.netlist import Netlist
from pccompile.diagnostics import CompileError
from pccompile.ir import Graph
from pccompile.ops import Typer


@dataclass(frozen=True)
class NetlistOptions:
    """How a circuit is built.

    loss: what its outputs are compared with. rate: of the error integrators, 0 < rate < 2; 2⁻ᵏ suits hardware.
    eta: the step of gradient descent in a learning tick. ticks: of the settling phase. input_errors: whether inputs
    have error units, too.
    """

    loss: Loss = "squared-error"
    rate: float = 0.125
    eta: float = 2.0**-4
    ticks: int = 64
    input_errors: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < 2:
            raise CompileError(f"rate {self.rate} is not between 0 and 2: the error units would not settle")
        if self.ticks < 1:
            raise CompileError(f"{self.ticks} ticks are too few")


@dataclass(frozen=True)
class Lowerable:
    """A graph of simple operations with its tensors and example inputs by name; `active` names carry an error."""

    graph: Graph
    tensors: Mapping[str, torch.Tensor]
    examples: Mapping[str, torch.Tensor]
    active: frozenset[str]
    typer: Typer


def build(
    source: Lowerable, options: NetlistOptions, name: str, results: Sequence[str], probabilities: Mapping[str, str]
) -> Netlist:
    """The circuit of a graph. Raises CompileError with every operation that has no circuit.

    results: the outputs in the model's order. probabilities: the softmax of each, where the loss reads it.
    """
    graph = source.graph
    lowering = Lowering(graph, source.tensors, source.examples, source.active, source.typer)
    lowering.run()
    outputs = Outputs(lowering, options.loss, dict(probabilities))
    outputs.add(results)
    learning = frozenset(graph.origin.get(p, p) for p in graph.params if p in source.active)
    circuit = lowering.c
    feedback = ErrorCircuit(circuit, outputs.errors, options.rate, learning, options.eta)
    add_rules(lowering, feedback.add())
    spec = Spec(
        name=name,
        phases=(Phase(name="settle", ticks=options.ticks), Phase(name="learn", ticks=1)),
        populations=circuit.populations,
        projections=tuple(circuit.projections),
        plasticity=tuple(circuit.plasticity),
        tensors=circuit.described(),
        inputs={k: lowering.inputs[k] for k in sorted(lowering.inputs, key=list(graph.inputs).index)},
        targets=outputs.targets,
        clamps=outputs.clamps,
        outputs=outputs.ports,
        draws=lowering.draws,
        fixed=lowering.fixed,
        arguments=tuple(graph.inputs),
    )
    return Netlist(spec, circuit.tensors, {k: v.numpy() for k, v in lowering.drawn.items()})
