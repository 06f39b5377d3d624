r"""How values follow their forces: the steppers that every relaxation of the free energy can take.

euler        v ← v + η f(v)
heavy-ball   u ← m u + η f(v),  v ← v + u
nesterov     u ← m u + η f(v + m u),  v ← v + u
adam         v ← v + η m̂ / (√ŝ + 10⁻⁸), m̂ and ŝ the bias-corrected means of f and f², decays 0.9 and 0.999
heun         v ← v + η/2 (f(v) + f(v + η f(v)))
adaptive     the same with a step η for each sample, taken where e = ‖η/2 (f(v + η f(v)) − f(v))‖ / (a + a ‖v‖) ≤ 1,
             norms over all vertices, a the accuracy; then η ← η · clip(0.9 / √e, 0.2, 5)

Adaptive steps add up over all vertices, so they are not local.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pccompile.algorithms.common import EULER, each, forces, held, look, sent
from pccompile.algorithms.law import PathLengths
from pccompile.diagnostics import CompileError, listing, printable
from pccompile.ir import Argument, PCGraph, Step, Until

StepperName = Literal["euler", "heavy-ball", "nesterov", "adam", "heun", "adaptive"]
DECAYS = "0.9", "0.999"


@dataclass(frozen=True)
class Stepper:
    """What is done before a loop, and in each of its turns. reads: further arguments that it takes."""

    start: tuple[Step, ...]
    turn: tuple[Step, ...]
    reads: tuple[str, ...] = ()


def stepper(pc: PCGraph, name: StepperName = "euler", clamp: str = "clamp") -> Stepper:
    """The stepper called `name` on the values of `pc`; `clamp` is what sets the errors of the outputs."""
    latent = pc.latent
    seen: tuple[Step, ...] = (*look(pc, clamp), *forces(pc))
    match name:
        case "euler":
            return Stepper((), (*seen, *each(latent, EULER)))
        case "heavy-ball":
            moved = each(latent, "velocity = mass * velocity + rate * force", "value = value + velocity")
            return Stepper(each(latent, "velocity = zero"), (*seen, *moved), ("mass",))
        case "nesterov":
            ahead = each(latent, "kept = value", "value = value + mass * velocity")
            moved = each(latent, "velocity = mass * velocity + rate * force", "value = kept + velocity")
            return Stepper(each(latent, "velocity = zero"), (*ahead, *seen, *moved), ("mass",))
        case "adam":
            first, second = DECAYS
            moved = each(
                latent,
                f"drift = {first} * drift + (1 - {first}) * force",
                f"spread = {second} * spread + (1 - {second}) * force * force",
                f"drift_weight = {first} * drift_weight + (1 - {first})",
                f"spread_weight = {second} * spread_weight + (1 - {second})",
                "value = value + rate * (drift / drift_weight) / (sqrt(spread / spread_weight) + 1e-8)",
            )
            start = each(latent, *(f"{slot} = zero" for slot in ("drift", "spread", "drift_weight", "spread_weight")))
            return Stepper(start, (*seen, *moved))
        case "heun":
            tried = each(latent, "kept = value", "first = force", "value = value + rate * force")
            moved = each(latent, "value = kept + rate / 2 * (first + force)")
            return Stepper((), (*_twice(pc, seen, tried), *moved, *each(pc.vertices, *SHOWN)))
        case "adaptive":
            return _adaptive(pc, seen)


def _adaptive(pc: PCGraph, seen: tuple[Step, ...]) -> Stepper:
    """Heun's steps, each sample taking or refusing its own. Raises CompileError where vertices have no samples."""
    latent = pc.latent
    for v in latent:
        if v.type.shape[:1] != latent[0].type.shape[:1]:
            what = f"adaptive steps are chosen sample by sample, and {v.name} has other samples than {latent[0].name}"
            raise CompileError(what, v.where, hint="take another stepper")
    tried = each(latent, "kept = value", "first = force", "value = value + size * force")
    judged = each(
        latent,
        "shift = size / 2 * (force - first)",
        "shift_squared = abs(shift) * abs(shift)",
        "kept_squared = abs(kept) * abs(kept)",
        "excess = zero + sqrt(across(shift_squared)) / (accuracy + accuracy * sqrt(across(kept_squared)))",
        "value = where(excess <= 1, kept + size / 2 * (first + force), kept)",
        "size = size * where(excess <= 1e30, clip(0.9 / sqrt(excess + 1e-12), 0.2, 5), 0.2)",
    )
    turn = (*_twice(pc, seen, tried), *judged, *each(pc.vertices, *SHOWN))
    return Stepper(each(latent, "size = zero + rate"), turn, ("accuracy",))


SHOWN = "prediction = prediction_before", "error = error_before"
"""What a trace of a step shows is where the step began, not where it tried."""


def _twice(pc: PCGraph, seen: tuple[Step, ...], tried: tuple[Step, ...]) -> tuple[Step, ...]:
    """Look, move on trial, and look again."""
    kept = each(pc.vertices, "prediction_before = prediction", "error_before = error")
    return (*seen, *kept, *tried, *seen)


def by_vertex(pc: PCGraph, given: float | Mapping[str, float], default: float, what: str) -> Argument:
    """A number for all vertices, or one for each: those that a table leaves out have the default.

    Raises CompileError for a name that is no vertex that inference moves.
    """
    if not isinstance(given, Mapping):
        return given
    names, called = [v.name for v in pc.latent], {r.vertex: r.name for r in pc.roles}
    if unknown := [n for n in given if n not in (*names, *called.values())]:
        hint = f"the vertices that move: {listing(names)}"
        raise CompileError(
            f"{what} names {printable(repr(unknown[0]))}, which is no vertex that inference moves", hint=hint
        )
    return {n: float(given.get(called.get(n, n), default)) for n in names}


def settled(pc: PCGraph) -> tuple[tuple[Step, ...], Until]:
    """The test by which a relaxation ends: every force small against the pull and the hold that it is made of.

    Vertices far from an output are silent at first and look settled, so it comes after the longest path.
    """
    effort = each(pc.latent, f"effort = abs(pull) + abs({held(pc)})", at="value", carries=sent(pc))
    return effort, Until("force", "effort", "tolerance", PathLengths(pc).longest)
