"""Is it local? What an algorithm needs of a substrate on one model, with the chain of reads where it is not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pccompile.algorithms import ALGORITHMS
from pccompile.analysis.locality import Locality, carried, locality
from pccompile.analysis.plasticity import Plasticity, plasticity
from pccompile.diagnostics import listing
from pccompile.ir import Program
from pccompile.pipeline import Compiled, Options, schedule
from pccompile.report.figures import bars
from pccompile.report.tables import Page, Report, Table, count

SHOWN = 12
"""So many updates of a chain are shown at each of its ends."""
RELAXED = "these are the steps; the compiled program evaluates what they end in, which gives the same gradients"


@dataclass(frozen=True)
class LocalityReport(Report):
    """What was read off a program.

    found: how far news travels. work: how much is evaluated for one batch. rules: what each parameter's update is made
    of. notes: lines for the reader.
    """

    algorithm: str
    found: Locality
    work: dict[str, int]
    rules: tuple[Plasticity, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def page(self) -> Page:
        """A line for each finding, and the longest chain where it is long."""
        f = self.found
        verdict = "local in space" if f.local else "not local in space: a step is as long as the graph is deep"
        verdict += ", in one wave: each vertex waits for its neighbours" if f.wave else ""
        lines = [
            f"locality of {self.algorithm}: {verdict}",
            *(f"hops         {t.hops} in {t.turn}" for t in f.turns),
            f"depth        {count(f.longest, 'edge')} on the longest path to an output",
            f"kept         {listing(f.kept) or 'nothing'}, from one step to the next",
            *([f"kept         {listing(f.across)}, over a whole relaxation"] if f.across else []),
            *([f"kept         {listing(f.lasting)}, from one call to the next"] if f.lasting else []),
            f"learns       {f.learns}",
            *(f"broadcast    one, of the error of {name} to {count(n, 'value')} directly" for name, n in f.broadcast),
            f"transport    {_transport(f)}",
            f"evaluated    {', '.join(f'{n:,} {what}' for what, n in self.work.items())}, for one batch",
        ]
        chain = max(f.turns, key=lambda t: t.hops).chain if not f.local else ()
        if len(chain) > 2 * SHOWN:
            chain = (*chain[:SHOWN], f"… {len(chain) - 2 * SHOWN} more …", *chain[-SHOWN:])
        lines += [f"chain        {step}" for step in chain]
        lines += [f"note         {n}" for n in self.notes]
        return Page((*lines, *([_table(self.rules)] if self.rules else [])))

    def as_dict(self) -> dict[str, Any]:
        """All findings."""
        own = {"algorithm": self.algorithm, "local": self.found.local, **asdict(self.found), "work": self.work}
        return {**own, "plasticity": [asdict(r) for r in self.rules], "notes": self.notes}

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture of the hops of each turn; `path` is where to write it."""
        rows = {t.turn: (float(t.hops),) for t in self.found.turns}
        rows["longest path to an output"] = (float(self.found.longest),)
        return bars(f"locality of {self.algorithm}", rows, path, axis="hops that news travels")


def _transport(f: Locality) -> str:
    if not f.transported:
        return "no message reads a parameter that learns"
    return f"messages read what learns at the other end of an edge: {listing(f.transported)}"


def _table(rules: tuple[Plasticity, ...]) -> Table:
    """A row for each parameter."""
    rows = tuple(
        (r.name, r.kind, listing(r.presynaptic) or "–", "yes" if r.own_state else "–", listing(r.weights) or "–",
         str(r.places))
        for r in rules
    )  # fmt: skip
    return Table(("parameter", "update", "presynaptic", "own state", "other weights", ">places"), rows)


def stepped(compiled: Compiled, options: Options) -> tuple[Program, tuple[str, ...]]:
    """The program of an algorithm step by step, and a line where the compiled one is another."""
    if "lowering" not in {f.name for f in fields(ALGORITHMS[options.algorithm].settings)}:
        return compiled.program, ()
    relaxed = schedule(compiled.pc, replace(options, settings={**options.settings, "lowering": "relax"}))
    return relaxed, () if relaxed.infer == compiled.program.infer else (RELAXED,)


def report_locality(program: Program, notes: tuple[str, ...] = ()) -> LocalityReport:
    """What `program` needs of a substrate."""
    work = dict(carried(program))
    return LocalityReport(program.algorithm, locality(program), work, plasticity(program.pc), notes)
