"""A loss function in predictive-coding form: its value, and the errors that it gives a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.algorithms import ALGORITHMS
from pccompile.backends.torch import Loss
from pccompile.diagnostics import CaptureError, CompileError, RuleError
from pccompile.frontends.capture import Wrapper
from pccompile.frontends.imported import Imported
from pccompile.frontends.signature import CaptureForm, Varied
from pccompile.frontends.subclasses import refuse_acting
from pccompile.ir import PCGraph
from pccompile.pipeline import Compiled, import_model, to_vertices
from pccompile.runtime.loaded_program import Interface
from pccompile.runtime.loss_lengths import refuse_lengths_of_data, varying
from pccompile.runtime.loss_state import LossState
from pccompile.runtime.program_cache import Captured

SQUARED_ERROR = "no loss was given: inference takes the squared error ½‖target − output‖², summed"
MEAN_LOSS = (
    "the loss is a mean over the batch, so what inference does with a sample depends on the batch's size: "
    "sum it, and divide the gradients"
)
UNCAPTURED = (
    "choose with torch.where, leave checks of values out, or, where inference need not know the loss, take it of pc(x)"
)
LARGEST = 4096
"""A loss may hold tensors, such as class weights, of so many entries: they are written into the generated file."""


class _LossModule(Wrapper):
    def __init__(self, loss: Callable[..., Tensor], interface: Interface) -> None:
        super().__init__()
        self.loss, self.interface = loss, interface

    def forward(self, outputs: tuple[Tensor, ...], target: Any) -> Tensor:
        """The loss of the model's flat outputs."""
        return self.loss(self.interface.assemble(outputs), target)


def compile_loss(
    loss: Callable[..., Tensor], state: LossState, captured: Captured, outputs: Sequence[Tensor], target: Any, free: str
) -> tuple[Loss, Interface]:
    """`loss(output, target)` as a part of a program, and what it takes. `outputs` and `target` are examples.

    state: that of the loss, which is told of the tensors that are written into the program. free: as for `export`.
    Raises CompileError where the loss is not a scalar, cannot be captured, or reads what learns.
    """
    interface, flat = captured.interface, tuple(o.detach() for o in outputs)
    with torch.no_grad():
        value = loss(interface.assemble(flat), target)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise CompileError("the loss is not a single number", hint="reduce it, for example with .mean() or .sum()")
    module, args = _LossModule(loss, interface), (flat, target)
    try:
        imported, pc = _with_rules(module, args, free, varying(captured, flat, pytree.tree_leaves(target)))
    except CaptureError as e:
        what = e.problems[0].what.replace(_LossModule.__name__, "the loss")
        raise CompileError(what, e.problems[0].where, UNCAPTURED) from e
    except (RuleError, AssertionError, RuntimeError):  # torch's own formulas ask which lengths are the same
        imported, pc = _with_rules(module, args, "nothing", frozenset())
    names = imported.inputs
    own, given = names[: len(flat)], names[len(flat) :]
    held = [imported.tensors[name] for name in pc.graph.buffers]
    for tensor in filter(state.learns, held):
        what = f"the loss reads a tensor {tuple(tensor.shape)} that requires a gradient, and would give it none"
        raise CompileError(what, hint="let the model return it, or what the loss makes of it, or freeze it")
    state.copied(held)
    compiled = Loss(pc, own, given, {name: literal(imported, name) for name in pc.graph.buffers})
    refuse_lengths_of_data(captured, imported)
    return compiled, Interface.of(imported, pytree.tree_leaves((flat, target)))


def _with_rules(module: _LossModule, args: tuple[Any, ...], free: str, varied: Varied) -> tuple[Imported, PCGraph]:
    """A loss as a graph, and its vertices with their rules. Raises CompileError where it is more than a function."""
    imported = import_model(module, args, form=CaptureForm(free=free, varied=varied))
    if imported.graph.params:
        raise CompileError("the loss has parameters of its own", hint="make it a part of the model")
    if imported.graph.further or imported.graph.updates:
        raise CompileError("the loss keeps a state or changes its arguments", hint="make it a part of the model")
    own = imported.inputs[: len(args[0])]
    wanted = frozenset(n for n in own if n is not None and imported.graph.inputs[n].differentiable)
    graph = replace(imported.graph, wanted=wanted)
    return imported, to_vertices(replace(imported, graph=graph), "op")[1]


def means_over_batch(loss: Callable[..., Tensor], interface: Interface, outputs: Sequence[Tensor], target: Any) -> bool:
    """Whether a batch that is given twice has the same loss as once, so that each sample's errors shrink with it."""

    def twice(t: Tensor) -> Tensor:
        return torch.cat([t, t]) if t.dim() else t

    flat = [o.detach() for o in outputs]
    with torch.no_grad():
        try:
            once = loss(interface.assemble(flat), target)
            both = loss(interface.assemble(list(map(twice, flat))), pytree.tree_map_only(Tensor, twice, target))
        except Exception:  # a loss may know the size of its batch
            return False
    return bool(once != 0) and torch.allclose(once, both, rtol=1e-4, atol=0)


def literal(imported: Imported, name: str) -> str:
    """A tensor of the loss as Python source."""
    tensor = imported.tensors[name]
    if tensor.numel() > LARGEST:
        raise CompileError(f"the loss holds a tensor of {tensor.numel()} entries", hint="pass it as part of the target")
    return f"torch.tensor({tensor.tolist()!r}, dtype={tensor.dtype}, device=device)"


def targets_of(target: Any) -> list[Tensor]:
    """The tensors of a target, flat."""
    leaves = (target,) if isinstance(target, Tensor) else pytree.tree_leaves(target)
    return [t for t in leaves if isinstance(t, Tensor)]


def loss_of(outputs: Any, criterion: Callable[..., Tensor] | None, target: Any) -> Tensor:
    """What `criterion` says of outputs that autograd knows; without one half the squared error, summed."""
    if criterion is not None:
        return criterion(outputs, target)
    floating = [t for t in targets_of(outputs) if t.is_floating_point()]
    pairs = zip(floating, targets_of(target), strict=True)
    return torch.stack([0.5 * (o - t).square().sum() for o, t in pairs]).sum()


def refuse_targets(targets: Sequence[Tensor]) -> None:
    """Raise CompileError where autograd would give a target a gradient, which inference does not compute.

    So does a target that is a tensor with operations of its own.
    """
    refuse_acting(("a target", t) for t in targets)
    if torch.is_grad_enabled() and any(t.requires_grad for t in targets):
        what = "a target requires a gradient, and a loss that is compiled in gives it none"
        raise CompileError(what, hint="detach it, or take the loss of pc(x) in place of pc.loss")


def refuse_losses(compiled: Compiled, algorithm: str) -> None:
    """Raise CompileError where outputs can have no loss: one has a precision, or targets are values."""
    if ALGORITHMS[algorithm].mirrors:
        what = f"{algorithm}: a target is the value of the output, and no loss is taken of it"
        raise CompileError(what, hint="leave loss= and outside_loss= out; a class is a row of 0 and 1")
    weighted = [v for v in compiled.pc.vertices if v.name in compiled.pc.clamped and v.energy]
    if weighted:
        what = f"precision names {weighted[0].name}, an output, whose energy is the loss that is given"
        hint = "weigh it in loss=, or leave loss= out: a precision weighs half the squared error of a target"
        raise CompileError(what, weighted[0].where, hint)
