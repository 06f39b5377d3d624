r"""Temporal predictive coding: hidden states inferred from observations, one time step after another.

    F_t = ℓ(h(v_t), y_t) + ½ Π ‖v_t − g(v*_{t−1}, u_t)‖²

v_t relaxes along −∂F_t/∂v_t from g(v*_{t−1}, u_t), the parameters of g and h learn at its end v*_t, and v*_t is what
the next step starts from (Millidge et al. 2024, arXiv:2302.09229). Where g and h are linear and ℓ is half the squared
error, v* is that of the Kalman filter whose prior covariance stays at Π⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pccompile.api.compile import compile
from pccompile.api.module import PCModule
from pccompile.diagnostics import CompileError
from pccompile.ir import Graph, TensorType
from pccompile.runtime.settle import Settled


class Temporal(nn.Module):
    """A model of one time step, with the state that it carries.

    model: `forward(state, *inputs)` returns `(new_state, observation)`: new_state = g(state, *inputs) in the shape of
    the state, and observation = h(new_state), which reads nothing else but parameters. g and h are any torch code; each
    is one vertex.
    args: an example `(state, *inputs)`, the samples first; the state is the one that time begins with.
    loss: loss(observation, target), a scalar summed over the samples; by default ½‖target − observation‖².
    precision: Π, a number above 0. settings: steps, rate, stepper, tolerance and mass, as strict inference takes them.

    `state` is a buffer: it is in the state_dict, follows `.to` and is copied. The parameters are those of the model.
    Raises CompileError for a model of another form.
    """

    state: Tensor

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Tensor, ...],
        loss: Callable[[Any, Any], Tensor] | None = None,
        precision: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.model = model
        state, *_ = args
        self.register_buffer("state", state.detach().clone())
        self.register_buffer("start", state.detach().clone(), persistent=False)
        pc = compile(
            model,
            (_carrying(state), *args[1:]),
            algorithm="strict",
            granularity="output",
            loss=_OfObservation(loss or _squared),
            precision=precision,
            **settings,
        )
        self.__dict__["pc"] = pc  # its tables are the model's, which stands here already
        self._moves = _transition(pc, (_carrying(state), *args[1:]))

    @property
    def source(self) -> str:
        """The generated file of one time step."""
        pc: PCModule = self.__dict__["pc"]
        return pc.source

    def forward(self, *inputs: Tensor) -> Tensor:
        """The observation that is predicted for the next time step; the state stays."""
        observation: Tensor = self.model(self.state, *inputs)[1]
        return observation

    def step(
        self, *inputs: Tensor, target: Any, optimizer: torch.optim.Optimizer | None = None, **numbers: Any
    ) -> Settled:
        """One time step: infer the state from the target, let the parameters learn there, carry it on.

        optimizer: what moves the parameters by `gradients`, which are those of F_t at the inferred state, summed over
        the samples; without one they stay. numbers: steps and rate, where this step has its own.
        Raises CompileError for inputs of another number of samples than the state, until `reset_state`.
        """
        for x in inputs:
            if x.dim() and len(x) != len(self.state):
                what = f"the state has {len(self.state)} samples, and an input has {len(x)}"
                raise CompileError(what, hint="reset_state(state) begins anew with a state for these samples")
        pc: PCModule = self.__dict__["pc"]
        found = pc.settle((_carrying(self.state), *inputs), target=target, **numbers)
        self.state = found[self._moves].detach()
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            for name, parameter in self.model.named_parameters():
                parameter.grad = found.gradients.get(name)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return found

    def reset_state(self, state: Tensor | None = None) -> None:
        """Begin anew, with the state of the example or with another, which may have another number of samples."""
        self.state = (self.start if state is None else state).detach().clone().to(self.state)

    start: Tensor


class _OfObservation:
    """A loss of the second of the model's results."""

    def __init__(self, loss: Callable[[Any, Any], Tensor]) -> None:
        self.loss = loss

    def __call__(self, results: Any, target: Any) -> Tensor:
        return self.loss(results[1], target)


def _squared(observation: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (target - observation).square().sum()


def _carrying(state: Tensor) -> Tensor:
    """A state from which errors can be asked for, so that a model without parameters of its own infers, too."""
    return state.detach().requires_grad_()


def _transition(pc: PCModule, args: tuple[Tensor, ...]) -> str:
    """The vertex of the new state. Raises CompileError where a model is none of one time step."""
    hint = "forward(state, *inputs) returns (new_state, observation)"
    runtime = pc.prepare(args)
    assert runtime.compiled is not None
    graph, results = runtime.compiled.graph, [o for tensor, o in runtime.interface.results if tensor]
    if len(results) != 2 or results[0] == results[1]:
        raise CompileError("a model of one time step has two results, a new state and an observation of it", hint=hint)
    moves, observation = (graph.outputs[i] for i in results)
    if [v.name for v in runtime.compiled.pc.latent] != [moves]:
        raise CompileError("the observation is not computed from the new state, or that is an argument", hint=hint)
    new = graph.types[moves]
    if not isinstance(new, TensorType) or new.shape[1:] != tuple(args[0].shape[1:]):
        raise CompileError(f"a sample of the state is {list(args[0].shape[1:])}, and the new state is {new}", hint=hint)
    if read := sorted(_read(graph, observation, moves) & set(graph.inputs)):
        what = f"the observation reads {read[0]} beside the new state"
        raise CompileError(what, hint="let it be a function of the new state, into which the input can be taken")
    return str(moves)


def _read(graph: Graph, value: str, stop: str) -> set[str]:
    """The leaves that `value` is computed from without what `stop` is computed from."""
    nodes, seen, open_ = {n.name: n for n in graph.nodes}, set[str](), [value]
    while open_:
        name = open_.pop()
        if name not in seen and name != stop:
            seen.add(name)
            open_ += nodes[name].inputs if name in nodes else ()
    return seen
