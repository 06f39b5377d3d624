"""Fixed prediction as a sum of sweeps over a graph, in each of which an edge damps what it carries."""

from __future__ import annotations

from collections.abc import Sequence

from pccompile.algorithms.common import clamped, learn
from pccompile.algorithms.exponentials import Sections, closest
from pccompile.algorithms.law import PathLengths
from pccompile.ir import Do, ForEach, PCGraph, Program, Step


class DampedSweeps:
    """The law as a sum of exponentials on a graph, and its program.

    law: the weights of 0, 1, 2 … edges, four at least. tolerance: how far they may be from it. eps: the spacing of
    numbers at 1.
    """

    def __init__(self, pc: PCGraph, paths: PathLengths, law: Sequence[float], tolerance: float, eps: float) -> None:
        self.pc, self.tolerance, self.children = pc, tolerance, pc.children()
        last = max(k for k, w in enumerate(law) if abs(w) > tolerance)
        within = (1 << last + 1) - 1
        self.moving = {name for name, lengths in paths.sets.items() if lengths & within}
        self.sections: Sections = closest(law, tolerance, eps)

    @property
    def error(self) -> float:
        """How far a weight can be from the law's."""
        return self.sections.error

    @property
    def messages(self) -> int:
        """How many messages are sent from vertex to vertex."""
        sent = (c.name for v in self.pc.latent if v.name in self.moving for c in self.children[v.name])
        return 2 * len(self.sections.rows) * sum(c in self.moving for c in sent)

    def program(self, facts: tuple[str, ...]) -> Program:
        """The sweeps, two at a time: a section's value at a vertex, and the value that its parents are to have."""
        pc, sections = self.pc, self.sections
        sweeps: list[Do] = []
        for name in pc.clamped:
            sweeps += [Do(name, "wave", "start * error"), Do(name, "ahead", "start_ahead * error")]
        for v in reversed(pc.latent):
            if v.name in self.moving:
                senders = [c.name for c in self.children[v.name] if c.name in self.moving]
                ahead, wave = ({c: {slot: 1.0} for c in senders} for slot in ("ahead", "wave"))
                sweeps.append(Do(v.name, "wave", "pull", carries=ahead))
                sweeps.append(Do(v.name, "ahead", "node_sum * wave - node_product * pull", carries=wave))
                sweeps.append(Do(v.name, "error", "error + wave"))
        start = (*clamped(pc), *(Do(v.name, "error", "zero") for v in pc.latent))
        names = ("node_sum", "node_product", "start", "start_ahead")
        still = sum(v.name not in self.moving for v in pc.latent)
        facts = (
            *facts,
            f"{2 * len(sections.rows)} exponentials in place of the steps: their weights are those of the steps "
            f"up to {sections.fit:.1g}, and up to {sections.rounding:.1g} of rounding",
            *([f"{still} vertices keep error 0: their paths carry {self.tolerance:.1g} at most"] if still else []),
        )
        infer: tuple[Step, ...] = (*start, ForEach(names, sections.rows, tuple(sweeps)))
        tolerance = max(self.tolerance, sections.error)
        return Program(pc, "fixed-prediction", infer, tuple(learn(pc)), facts=facts, tolerance=tolerance)
