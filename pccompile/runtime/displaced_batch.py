"""One batch whose hidden values can be displaced: the instruments' programs, emitted and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pccompile.algorithms import instruments
from pccompile.algorithms.law import PathLengths
from pccompile.analysis.spectrum import Vector
from pccompile.backends.torch import emit
from pccompile.ir import PCGraph, Program, verify_program
from pccompile.pipeline import Compiled
from pccompile.runtime.loaded_program import load
from pccompile.runtime.model_state import Tables

SEED = 20
"""Random draws of the model are the same in every program."""


class Ready(NamedTuple):
    """The functions of a program, and what its prediction of the batch has returned."""

    scope: dict[str, Any]
    outputs: tuple[Tensor, ...]
    context: list[Any]


class DisplacedBatch:
    """The operators of `analysis.spectrum` for one batch. Nothing of the model or the random stream changes.

    compiled: the program whose vertices and loss are measured. targets: the target's tensors, flat. scopes: the
    functions of programs that another batch has run, which those of this one join.
    Raises CompileError where a vertex draws samples that would move.
    """

    def __init__(
        self,
        compiled: Compiled,
        tables: Tables,
        inputs: Mapping[str, Tensor],
        targets: Sequence[Tensor],
        scopes: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self._scopes = {} if scopes is None else scopes
        self.compiled, self.tables, self.targets = compiled, tables, list(targets)
        self.inputs = {k: t.detach() for k, t in inputs.items()}
        self.latent = tuple(v.name for v in compiled.pc.latent)
        self.longest = PathLengths(compiled.pc).longest
        self._ready: dict[str, Ready] = {}
        self.start: Vector = {}
        if self.latent:
            nothing = dict.fromkeys(self.latent, 0.0)
            self.start = self._run(instruments.forward_sweep, nothing)[1]

    def forces(self, offset: Vector, nudge: float) -> tuple[Vector, Vector]:
        """The hidden errors, and −∂F/∂v."""
        errors, forces = self._run(instruments.forces, offset, nudge=nudge)
        return {v: errors[v] for v in self.latent}, forces

    def forward_sweep(self, offset: Vector) -> Vector:
        """The hidden values of a sweep that adds the offset to each prediction."""
        return self._run(instruments.forward_sweep, offset)[1]

    def loss_gradients(self, offset: Vector) -> Vector:
        """−∂ℓ/∂δ at that offset δ."""
        return self._run(instruments.loss_gradients, offset)[1]

    def adjoint(self, offset: Vector) -> Vector:
        """Aᵀ times the offset."""
        return self._run(instruments.adjoint, offset)[1]

    def inverse_adjoint(self, offset: Vector) -> Vector:
        """A⁻ᵀ times the offset."""
        return self._run(instruments.inverse_adjoint, offset)[1]

    def _run(self, make: Callable[[PCGraph], Program], offset: Mapping[str, Any], **more: Any) -> tuple[Vector, Vector]:
        """The errors, and the state of the program, of hidden vertices."""
        ready = self.ready(make)
        with self.plainly():
            errors, state = ready.scope["infer"](self.tables[0], ready.context, self.targets, offset=offset, **more)
        return errors, {v: state[v] for v in (state if make is instruments.predictions else self.latent)}

    def ready(self, make: Callable[[PCGraph], Program]) -> Ready:
        """A program of this batch, emitted, and predicted once."""
        if make.__name__ not in self._ready:
            if make.__name__ not in self._scopes:
                self._scopes[make.__name__] = self._loaded(make(self.compiled.pc))
            self._ready[make.__name__] = self._predicted(self._scopes[make.__name__])
        return self._ready[make.__name__]

    def prepared(self, program: Program) -> Ready:
        """Another program over the same vertices, on this batch."""
        return self._predicted(self._loaded(program))

    def _loaded(self, program: Program) -> dict[str, Any]:
        return load(emit(verify_program(program), self.compiled.loss).text, program.algorithm)

    def _predicted(self, scope: dict[str, Any]) -> Ready:
        params, buffers = self.tables
        with torch.random.fork_rng(), self.plainly():
            torch.default_generator.manual_seed(SEED)  # torch.manual_seed is slow where there are no devices
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(SEED)
            outputs, context = scope["predict"](params, {k: b.clone() for k, b in buffers.items()}, self.inputs)
        return Ready(scope, outputs, context)

    def plainly(self) -> Any:
        """Without autocast: programs make its casts themselves."""
        kind = next(iter((*self.inputs.values(), *self.targets))).device.type
        return torch.autocast(kind, enabled=False)

    def free_energy(self, values: Mapping[str, Tensor]) -> float:
        """Σ ½‖ε‖² over the hidden vertices, and the loss, at these hidden values."""
        errors, predicted = self._run(instruments.predictions, {v: values[v] - self.start[v] for v in self.latent})
        ready, outputs = self.ready(instruments.predictions), self.compiled.pc.graph.outputs
        present = list(ready.outputs)
        for o in self.compiled.pc.outputs:
            present[outputs.index(o.value)] = predicted[o.vertex]
        with self.plainly():
            loss, _ = ready.scope["clamp"](present, self.targets)
        return float(loss) + sum(0.5 * float(errors[v].abs().double().square().sum()) for v in self.latent)
