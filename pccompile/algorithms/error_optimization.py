r"""Error optimization (ePC): the errors are what inference moves (arXiv:2505.20137).

    forwards    v_i = f_i(v_P(i)) + ε_i          backwards    a_i = Σ_c J_ci(v)ᵀ a_c,   a = −∂L/∂v̂ at an output
    ε_i ← ε_i + η (a_i − ε_i)

News from the loss reaches every vertex in one step, since each step sweeps over the whole graph: not local. Its
equilibria are those of strict inference. After one step the errors are η times those of backpropagation.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import along, each, exchange, forwards, held, learn, refuse_draws, sent
from pccompile.algorithms.rates import by_curvature
from pccompile.algorithms.record import Algorithm, Auto, resolved, setting
from pccompile.ir import Do, PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How far inference goes."""

    steps: int | Auto = setting(5, "a number of inference steps", least=0)
    rate: float | Auto = setting(0.1, "size of an inference step", above=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Gradient descent on the free energy over the errors. Raises CompileError for samples that move."""
    refuse_draws(pc)
    body: tuple[Step, ...] = (
        *_forwards(pc),
        *each(pc.ends, f"carried = {sent(pc)}"),
        *along(reversed(pc.latent), "carried = pull", at="value", carries="carried"),
        *each(pc.latent, f"error = error + rate * (carried - {held(pc)})"),
    )
    infer: tuple[Step, ...] = (*each(pc.latent, "error = zero"), Repeat("steps", body), *_forwards(pc))
    arguments = {"steps": resolved(settings.steps), "rate": resolved(settings.rate)}
    learning = tuple(learn(pc, at="value", carries=sent(pc)))
    return Program(pc, "error-optimization", infer, learning, arguments=arguments, state="value")


def _forwards(pc: PCGraph) -> tuple[Do, ...]:
    """Predictions in the order of the graph, each value off its prediction by its error."""
    placed = forwards(pc, lambda v: "prediction + error")
    return (*placed, *each(pc.ends, "error = clamp"), *exchange(pc))


ALGORITHM = Algorithm(
    "error-optimization",
    schedule,
    Settings,
    "arXiv:2505.20137",
    equals="strict, where both converged",
    energies="of the error",
    roles=True,
    automatic=by_curvature,
    most_energy=lambda _, loss, entries: loss,  # F = ½‖ε‖² + L starts there and falls
)
