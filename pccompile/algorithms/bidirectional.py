r"""Bidirectional PC: every value is predicted from both sides (Oliviers et al. 2025, arXiv:2505.23415).

    F = Σ ½ α_d ‖v_i − f_i(v_{i−1})‖² + Σ ½ α_g ‖v_{i−1} − g_{i−1}(v_i)‖²,   v_i ← v_i − η ∂F/∂v_i

One network classifies (input given, output free), generates (output given, input free) and fills in. The layers f are
the model's, the layers g their mirrors. A target is the value of the output; without one it is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from pccompile.algorithms.common import EULER, each, learn, look, refuse_draws, sent, start
from pccompile.algorithms.record import Algorithm, setting
from pccompile.ir import Do, PCGraph, Program, Repeat, Step


@dataclass(frozen=True)
class Settings:
    """How far inference goes, and how the two predictions of a value are weighed."""

    steps: int = setting(20, "a number of inference steps", least=0)
    rate: float = setting(0.1, "size of an inference step", above=0)
    discriminative: float = setting(1.0, "weight of what the model's layers predict, alpha_d", least=0)
    generative: float = setting(1.0, "weight of what their mirrors predict, alpha_g", least=0)


def schedule(pc: PCGraph, settings: Settings) -> Program:
    """Gradient descent on the free energy over all values, from the forward pass. Raises CompileError for draws."""
    refuse_draws(pc)
    relays = {p: v.name for v in pc.vertices if v.name in pc.clamped for p in v.parents}
    targets = [Do(p, "value", "value + pull", "value", {o: {"error": 1.0}}) for p, o in relays.items()]
    moving = [v for v in pc.latent if v.name not in relays]
    forces = each(moving, "force = pull - held", at="value", carries=sent(pc))
    infer: tuple[Step, ...] = (*start(pc), *look(pc), *targets)
    infer = (*infer, Repeat("steps", (*look(pc), *forces, *each(moving, EULER))), *look(pc))
    learning = tuple(learn(pc, at="value", carries=sent(pc)))
    arguments = {"steps": settings.steps, "rate": settings.rate}
    return Program(pc, "bidirectional", infer, learning, arguments=arguments, state="value")


def weights(settings: Settings) -> tuple[float, float]:
    """How much a prediction of the model weighs, and one of a mirror."""
    return settings.discriminative, settings.generative


ALGORITHM = Algorithm(
    "bidirectional", schedule, Settings, "arXiv:2505.23415", energies="any", roles=True, mirrors=weights
)
