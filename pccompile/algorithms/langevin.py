r"""Monte Carlo PC: Langevin sampling of the values, gradients averaged over the samples.

    v_i ← v_i + η force_i + √(2 η τ) ξ_i,   ξ standard normal

The samples are those of exp(−F/τ) up to O(η); with τ = 0 this is strict inference (Oliviers et al. 2024,
doi:10.1371/journal.pcbi.1012532; Zahid et al. 2024, arXiv:2311.10300).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pccompile.algorithms.common import learn, look, move, refuse_draws, sent, start
from pccompile.algorithms.rates import sampling
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.ir import PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How many samples, after how many steps, and at which temperature."""

    steps: int | Auto = setting(100, "a number of samples, one an inference step", least=1)
    burn_in: int = setting(50, "inference steps before the first sample", least=0)
    rate: float | Auto = setting(0.01, "size of an inference step", above=0)
    temperature: float = setting(1.0, "temperature of the samples", least=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Langevin dynamics over all values. Raises CompileError for samples that the model itself draws."""
    refuse_draws(pc)
    moved = move(pc, "value = value + rate * force + sqrt(2 * rate * temperature) * noise")
    average = learn(pc, at="value", carries=sent(pc), equation="gradient - pull / steps")
    sample: tuple[Step, ...] = (*look(pc), *moved, *look(pc), *average)
    infer: tuple[Step, ...] = (
        *start(pc),
        Repeat("burn_in", (*look(pc), *moved)),
        *learn(pc, at="value", equation="zero"),
        Repeat("steps", sample),
        *look(pc),
    )
    arguments = {k: resolved(getattr(settings, k)) for k in ("steps", "burn_in", "rate", "temperature")}
    return Program(pc, "langevin", infer, (), arguments=arguments, state="value")


def most_energy(arguments: Mapping[str, Any], loss: Tensor, entries: int) -> Tensor:
    """The loss, and twice what samples at half of the bound have on average, τ a dimension at most."""
    spread: float = 2 * arguments["temperature"] * entries
    return loss + spread


ALGORITHM = Algorithm(
    "langevin",
    schedule,
    Settings,
    "doi:10.1371/journal.pcbi.1012532",
    descends=False,
    energies="any",
    roles=True,
    automatic=sampling,
    most_energy=most_energy,
)
