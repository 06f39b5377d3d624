"""Exact inference: fixed predictions and step size 1, visited from the outputs backwards.

Each error is computed once and ends at minus the loss gradient of its value, so the parameters' gradients are those of
backpropagation (Millidge, Tschantz & Buckley 2020, arXiv:2006.04182, with the schedule of Salvatori et al. 2021,
arXiv:2103.04689).
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import clamped, learn, sweep
from pccompile.algorithms.record import Algorithm
from pccompile.ir import Do, PCGraph, Program


@dataclass(frozen=True)
class Settings:
    """None."""


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Reverse topological order: ε = pull, once for each vertex."""
    errors = (*clamped(pc), *(Do(v.name, "error", "pull") for v in reversed(pc.latent)))
    outputs = (Do(name, "minus_error", "-clamp") for name in pc.clamped)
    latent = (Do(v.name, "minus_error", "pull", carries="minus_error") for v in reversed(pc.latent))
    return Program(pc, "exact", errors, tuple(learn(pc)), tuple(sweep(pc, (*outputs, *latent), "minus_error")))


ALGORITHM = Algorithm(
    "exact", schedule, Settings, "arXiv:2006.04182", granularity="op", equals="backprop", needs_loss=False
)
