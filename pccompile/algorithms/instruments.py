"""Programs that measure a network instead of teaching it: what its rules do to a given displacement.

The argument `offset` is a table of tensors, one for each hidden vertex. From two of them of opposite sign, finite
differences give the operators that decide every rate (see analysis.spectrum); no autograd is involved.
"""

from __future__ import annotations

from pccompile.algorithms import common
from pccompile.algorithms.common import along, each, forwards, look, refuse_draws, start
from pccompile.ir import Argument, Do, PCGraph, Program


def forces(pc: PCGraph) -> Program:
    """The errors, and −∂F/∂v, with every hidden value displaced from the forward pass; `nudge` weighs the loss."""
    refuse_draws(pc)
    displaced = (*start(pc), *each(pc.latent, "value = value + offset"))
    arguments: dict[str, Argument] = {"nudge": 1.0, "offset": _nothing(pc)}
    infer = (*displaced, *look(pc, "nudge * clamp"), *common.forces(pc))
    return Program(pc, "forces", infer, (), arguments=arguments, state="force")


def predictions(pc: PCGraph) -> Program:
    """The errors and the predictions with every hidden value displaced from the forward pass."""
    refuse_draws(pc)
    infer = (*each(pc.latent, "value = prediction + offset"), *look(pc))
    return Program(pc, "predictions", infer, (), arguments={"offset": _nothing(pc)}, state="prediction")


def forward_sweep(pc: PCGraph) -> Program:
    """The hidden values where each is off its prediction by its offset: v_i = f_i(v_P(i)) + δ_i, in one sweep."""
    refuse_draws(pc)
    return Program(pc, "forward sweep", _sweep(pc), (), arguments={"offset": _nothing(pc)}, state="value")


def loss_gradients(pc: PCGraph) -> Program:
    """−∂ℓ/∂δ, where ℓ(δ) is the loss of such a sweep."""
    refuse_draws(pc)
    carried = (
        *each(pc.clamped, "error = clamp", "carried = error"),
        *along(reversed(pc.latent), "carried = pull", at="value", carries="carried"),
    )
    arguments = {"offset": _nothing(pc)}
    return Program(pc, "loss gradients", (*_sweep(pc), *carried), (), arguments=arguments, state="carried")


def adjoint(pc: PCGraph) -> Program:
    """Aᵀ w for w = offset, A = ∂ε/∂v among hidden vertices at the forward pass: w less the messages that w sends."""
    sent = each(pc.latent, "sent = zero + offset")
    found = each(pc.latent, "adjoint = sent - pull", carries=_among_latent(pc, "sent"))
    return Program(pc, "adjoint", (*sent, *found), (), arguments={"offset": _nothing(pc)}, state="adjoint")


def inverse_adjoint(pc: PCGraph) -> Program:
    """A⁻ᵀ w for w = offset: in reverse order, w and the messages of what has been found."""
    carries = _among_latent(pc, "adjoint")
    found = along(reversed(pc.latent), "sent = zero + offset", "adjoint = sent + pull", carries=carries)
    return Program(pc, "inverse adjoint", found, (), arguments={"offset": _nothing(pc)}, state="adjoint")


def _sweep(pc: PCGraph) -> tuple[Do, ...]:
    return forwards(pc, lambda v: "prediction + offset")


def _nothing(pc: PCGraph) -> dict[str, float]:
    return {v.name: 0.0 for v in pc.latent}


def _among_latent(pc: PCGraph, slot: str) -> dict[str, dict[str, float]]:
    """What hidden vertices send; outputs send nothing."""
    return {v.name: {slot: 1.0} for v in pc.latent}
