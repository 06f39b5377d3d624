"""One batch whose hidden values can be displaced: the instruments' programs, emitted and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pccompile.algorithms import instruments
from pccompile.algorithms.law import path_lengths
from pccompile.analysis.spectrum import Vector
from pccompile.backends.torch import emit
from pccompile.driver import Compiled
from pccompile.ir import PCGraph, Program, verify_program
from pccompile.runtime.loaded_program import load
from pccompile.runtime.model_state import Tables

SEED = 20
"""Random draws of the model are the same in every program."""


class DisplacedBatch:
    """The operators of `analysis.spectrum` for one batch. Nothing of the model or the random stream changes.

    compiled: the program whose vertices and loss are measured. targets: the target's tensors, flat.
    Raises CompileError where a vertex draws samples that would move.
    """

    def __init__(
        self, compiled: Compiled, tables: Tables, inputs: Mapping[str, Tensor], targets: Sequence[Tensor]
    ) -> None:
        self.compiled, self.tables, self.targets = compiled, tables, list(targets)
        self.inputs = {k: t.detach() for k, t in inputs.items()}
        self.latent = tuple(v.name for v in compiled.pc.latent)
        self.longest = max((max(ks, default=0) for ks in path_lengths(compiled.pc).values()), default=0)
        self._ready: dict[str, tuple[Callable[..., Any], list[Any]]] = {}
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
        if make.__name__ not in self._ready:
            self._ready[make.__name__] = self._prepared(verify_program(make(self.compiled.pc)))
        infer, context = self._ready[make.__name__]
        with _plainly(self.targets, self.inputs):
            errors, state = infer(self.tables[0], context, self.targets, offset=offset, **more)
        return errors, {v: state[v] for v in self.latent}

    def _prepared(self, program: Program) -> tuple[Callable[..., Any], list[Any]]:
        """The inference of an instrument, and the context that it reads."""
        params, buffers = self.tables
        scope = load(emit(program, self.compiled.loss).text, program.algorithm)
        with torch.random.fork_rng(), _plainly(self.targets, self.inputs):
            torch.manual_seed(SEED)
            _, context = scope["predict"](params, {k: b.clone() for k, b in buffers.items()}, self.inputs)
        return scope["infer"], context


def _plainly(targets: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Any:
    """Without autocast: programs make its casts themselves."""
    kind = next(iter((*inputs.values(), *targets))).device.type
    return torch.autocast(kind, enabled=False)


__all__ = ["DisplacedBatch"]
