"""The losses that reports clamp outputs with, and targets for those who give none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.runtime.loaded_program import Runtime

Criterion = Callable[[Any, Any], Tensor]


def squared_error(output: Any, target: Any) -> Tensor:
    """½‖target − output‖², summed over everything that can carry an error."""
    targets = [t for t in pytree.tree_leaves(target) if isinstance(t, Tensor)]
    outputs = floating(output)
    if len(targets) != len(outputs):
        raise CompileError(
            f"{len(targets)} targets are given for {len(outputs)} outputs", hint="one for each floating-point output"
        )
    terms = [0.5 * (t - o).abs().square().sum() for t, o in zip(targets, outputs, strict=True)]
    return torch.stack([t.to(terms[0].dtype) for t in terms]).sum()


def cross_entropy(output: Any, target: Any) -> Tensor:
    """−log p(target), classes in dimension 1 of the first output, summed."""
    return F.cross_entropy(floating(output)[0], target, reduction="sum")


def floating(output: Any) -> list[Tensor]:
    """The leaves of a model's result that can carry an error."""
    leaves = pytree.tree_leaves(output)
    return [o for o in leaves if isinstance(o, Tensor) and (o.is_floating_point() or o.is_complex())]


def random_target(loss: Criterion, output: Any, seed: int) -> Any:
    """A target that fits `loss` and `output`: normal numbers, or classes."""
    generator = torch.Generator().manual_seed(seed)
    outputs = floating(output)
    if not outputs:
        raise CompileError("the model has no floating-point output")
    if loss is cross_entropy:
        classes = outputs[0]
        if classes.dim() < 2:
            raise CompileError(f"cross-entropy needs an output [batch, classes, ...]; it is {list(classes.shape)}")
        shape = (classes.shape[0], *classes.shape[2:])
        return torch.randint(0, max(1, classes.shape[1]), shape, generator=generator).to(classes.device)
    made = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device, o.dtype) for o in outputs]
    return made[0] if len(made) == 1 else made


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """`tree` with its real floating-point tensors in another precision."""

    def change(leaf: Any) -> Any:
        return leaf.detach().to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(change, tree)


def clamp(
    runtime: Runtime, outputs: Sequence[Tensor], loss: Criterion | None, target: Any
) -> tuple[Tensor, list[Tensor]]:
    """The loss and the outputs' errors −∂L/∂v̂: by autograd of the loss alone, or by the program's own loss."""
    if loss is None:
        return runtime.clamp(outputs, [t for t in pytree.tree_leaves(target) if isinstance(t, Tensor)])
    free = [o.detach() for o in outputs]
    clamped = [free[i].requires_grad_() for i in runtime.source.errors]
    with torch.enable_grad():
        value = loss(runtime.interface.assemble(free), target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise CompileError("the loss is not a single number", hint="reduce it, for example with .mean() or .sum()")
        if not value.requires_grad:
            return value.detach(), [torch.zeros_like(o) for o in clamped]
        sent = torch.autograd.grad(value, clamped, allow_unused=True)
    return value.detach(), [torch.zeros_like(o) if g is None else -g for g, o in zip(sent, clamped, strict=True)]


def cloned(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that a trial run may write to."""
    return {k: b.clone() for k, b in buffers.items()}
