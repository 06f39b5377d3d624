"""Incremental PC: values and parameters move together, at every step (Salvatori et al. 2024, arXiv:2212.00720).

Each step takes the forces and the parameters' gradients at the same state, then moves both: T optimizer steps a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import EULER, each, forces, learn, look, refuse_draws, sent, start
from pccompile.algorithms.rates import descent
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.ir import PCGraph, Program, Repeat, Step, Update


@dataclass(frozen=True)
class Settings:
    """How far inference goes; what an optimizer does with the gradients is its own affair."""

    steps: int | Auto = setting(20, "a number of inference steps, each with an optimizer step", least=0)
    rate: float | Auto = setting(0.1, "size of a step of the values", above=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Joint descent of the free energy. Raises CompileError for samples that move."""
    refuse_draws(pc)
    both = (*forces(pc), *learn(pc, at="value", carries=sent(pc)))
    body: tuple[Step, ...] = (*look(pc), *both, *each(pc.latent, EULER), Update("gradient"))
    arguments = {"steps": resolved(settings.steps), "rate": resolved(settings.rate)}
    infer: tuple[Step, ...] = (*start(pc), Repeat("steps", body), *look(pc))
    return Program(pc, "incremental", infer, (), arguments=arguments, state="value")


ALGORITHM = Algorithm(
    "incremental", schedule, Settings, "arXiv:2212.00720", energies="any", roles=True, automatic=descent
)
