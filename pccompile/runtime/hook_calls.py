"""Forward hooks that only look on, called after a program with what they would see in eager torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.forward_hooks import Observation


class _Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, learning: Tensor, value: Tensor, refusal: Callable[[], CompileError]) -> Tensor:
        ctx.refusal = refusal
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, err: Tensor) -> Any:
        raise ctx.refusal()


def only_shown(value: Tensor, refusal: Callable[[], CompileError]) -> Tensor:
    """A value within a program as eager torch shows it: it requires a gradient, and refuses one that arrives."""
    if not torch.is_grad_enabled():
        return value
    return _Shown.apply(torch.empty(0, requires_grad=True), value, refusal)  # type: ignore[no-any-return, no-untyped-call]


def run_hooks(observations: Sequence[Observation], shown: Sequence[Any]) -> None:
    """Call hooks in the order of eager torch. Raises CompileError for one that changes what it is shown."""
    for observation in observations:
        leaves: list[Any] = []
        kept = functools.partial(_refusal, observation, "keeps a value through which a gradient flows")
        for i, (is_shown, leaf) in enumerate(observation.leaves):
            value = shown[leaf] if is_shown else leaf
            value = value.clone() if i in observation.final else value
            leaves.append(only_shown(value, kept) if i in observation.learning else value)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        versions = [t._version for t in tensors]
        returned = observation.hook(observation.module, *pytree.tree_unflatten(leaves, observation.spec))
        if not observation.traced and (returned is not None or [t._version for t in tensors] != versions):
            raise _refusal(observation, "changes what is computed in a way that could not be traced")
        if any(t.requires_grad and (t._backward_hooks or t.retains_grad) for t in tensors):
            raise _refusal(observation, "asks for the gradient of what it sees")
        for i, last in observation.final.items():  # a hook that kept the tensor sees what is written over it
            leaves[i].data.copy_(shown[last])


def _refusal(observation: Observation, what: str) -> CompileError:
    return CompileError(
        f"{observation.owner} {what}",
        Location(observation.path),
        "let forward return that value, or remove the hook",
    )
