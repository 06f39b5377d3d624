r"""Strict inference: predictions follow the values (Whittington & Bogacz 2017, doi:10.1162/NECO_a_00949).

    v_i ← v_i − η (ε_i − Σ_c J_ci(v)ᵀ ε_c),   ε_i = v_i − f_i(v_P(i))

This descends F = Σ ½‖ε_i‖² + L over all values. Its equilibrium is not backpropagation's, by design. The loss is
evaluated anew at every step, so it is part of the program.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import learn, look, move, refuse_draws, start
from pccompile.algorithms.record import Algorithm, setting
from pccompile.ir import PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How far inference goes."""

    steps: int = setting(20, "a number of inference steps", least=0)
    rate: float = setting(0.1, "size of an inference step", above=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Gradient descent on the free energy over all values together. Raises CompileError for samples that move."""
    refuse_draws(pc)
    infer: tuple[Step, ...] = (*start(pc), Repeat("steps", (*look(pc), *move(pc))), *look(pc))
    arguments = {"steps": settings.steps, "rate": settings.rate}
    return Program(pc, "strict", infer, tuple(learn(pc, at="value")), arguments=arguments, state="value")


ALGORITHM = Algorithm("strict", schedule, Settings, "doi:10.1162/NECO_a_00949")
