r"""Meta-PCN: fixed-prediction inference, with weights held at spectral norm 1 (ICLR 2026, openreview kE5jJUHl9i).

Inference descends ½ Σ ‖δ_l − g_l(δ_{l+1})‖² over the deviations δ = v − v̂ from the forward pass, messages frozen: that
is fixed prediction, iterate by iterate. What is new is what becomes of a weight after each update,

    W ← W / ((√m + √n) · std(W)),   m outputs, n inputs a unit,

by which a random matrix of that shape gets a spectral norm near 1: `normalise_weights`, behind `optimizer.step()`. The
formulas are taken from a summary of the paper.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pccompile.algorithms import fixed_prediction
from pccompile.algorithms.record import Algorithm
from pccompile.ir import PCGraph, Program

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def schedule(pc: PCGraph, settings: fixed_prediction.Settings) -> Program:
    """As fixed prediction."""
    return replace(fixed_prediction.schedule(pc, settings), algorithm="meta-pcn")


@torch.no_grad()
def normalise_weights(model: nn.Module) -> None:
    """Divide the weight of every linear and convolution layer in place by (√m + √n) · std, as Meta-PCN does.

    Weights that other layers share are divided once; one of a single entry, or of equal entries, is left alone.
    """
    weights = (m.weight for m in model.modules() if isinstance(m, WEIGHTED))
    for weight in {id(w): w for w in weights}.values():
        rows = weight.flatten(1)
        scale = (rows.shape[0] ** 0.5 + rows.shape[1] ** 0.5) * rows.std()
        if rows.numel() > 1 and bool(scale > 0):
            weight.div_(scale)


ALGORITHM = Algorithm(
    "meta-pcn",
    schedule,
    fixed_prediction.Settings,
    "openreview:kE5jJUHl9i",
    equals="fixed-prediction, whose gradients it has",
    needs_loss=False,
)
