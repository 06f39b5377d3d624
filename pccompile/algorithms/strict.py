r"""Strict inference: predictions follow the values (Whittington & Bogacz 2017, doi:10.1162/NECO_a_00949).

    v_i ← v_i − η (ε_i − Σ_c J_ci(v)ᵀ ε_c),   ε_i = v_i − f_i(v_P(i))

This descends F = Σ ½‖ε_i‖² + L over all values. Its equilibrium is not backpropagation's, by design. The loss is
evaluated anew at every step, so it is part of the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pccompile.algorithms.common import learn, look, refuse_draws, sent, start
from pccompile.algorithms.rates import descent
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.algorithms.steppers import StepperName, by_vertex, settled, stepper
from pccompile.diagnostics import CompileError
from pccompile.ir import Argument, PCGraph, Program, Repeat, Step

RATE = 0.1


@dataclass(frozen=True)
class Settings:
    """How far inference goes, and by which steps."""

    steps: int | Auto = setting(20, "a number of inference steps", least=0)
    rate: float | Mapping[str, float] | Auto = setting(
        RATE, "size of an inference step, or a table of sizes by vertex", above=0
    )
    stepper: StepperName = setting("euler", "how values follow their forces")
    mass: float = setting(0.9, "momentum of the heavy-ball and nesterov steppers", least=0, below=1)
    accuracy: float = setting(1e-3, "how far an adaptive step may err, relative to the values", above=0)
    tolerance: float | None = setting(None, "stop where each force is so small against what makes it", above=0)

    def __post_init__(self) -> None:
        if self.stepper == "adaptive" and isinstance(self.rate, Mapping):
            raise CompileError("adaptive steps begin with one rate for all vertices", hint="rate=0.1")
        if self.stepper == "adam" and "auto" in (self.rate, self.steps):
            raise CompileError("adam takes steps of the size of the rate, whatever the forces are", hint="give numbers")


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Gradient descent on the free energy over all values together. Raises CompileError for samples that move."""
    refuse_draws(pc)
    rate = settings.rate
    assert not isinstance(rate, str)
    how = stepper(pc, settings.stepper)
    arguments: dict[str, Argument] = {
        "steps": resolved(settings.steps),
        "rate": by_vertex(pc, rate, RATE, "rate"),
    }
    arguments |= {name: getattr(settings, name) for name in how.reads}
    turn, until = how.turn, None
    if settings.tolerance is not None and pc.latent:
        effort, until = settled(pc)
        turn, arguments["tolerance"] = (*turn, *effort), settings.tolerance
    infer: tuple[Step, ...] = (*start(pc), *how.start, Repeat("steps", turn, until), *look(pc))
    return Program(
        pc, "strict", infer, tuple(learn(pc, at="value", carries=sent(pc))), arguments=arguments, state="value"
    )


ALGORITHM = Algorithm(
    "strict",
    schedule,
    Settings,
    "doi:10.1162/NECO_a_00949",
    energies="any",
    roles=True,
    automatic=descent,
    most_energy=lambda _, loss, entries: loss,  # F = ½‖ε‖² + L starts there and falls
)
