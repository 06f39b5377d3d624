"""Two ways of training, compared by what recorders wrote: a paired test and the size of the effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccompile.diagnostics import CompileError
from pccompile.report.tables import Page, Report, Table, number

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""The numbers of each name with their steps."""
FEWEST = 2


@dataclass(frozen=True)
class PairedDifference:
    """Of one number: means of both sides, the mean difference, what a paired test says of it, and its size.

    wilcoxon, t_test: two-sided p of the signed-rank test and of the paired t test. effect: Cohen's d of the
    differences, their mean over their standard deviation. nan where all differences are the same.
    """

    name: str
    pairs: int
    first: float
    second: float
    difference: float
    wilcoxon: float
    t_test: float
    effect: float


@dataclass(frozen=True)
class RunComparison(Report):
    """All numbers that both sides have. paired: "run", one pair for each two runs, or "step"."""

    paired: str
    differences: tuple[PairedDifference, ...]

    @property
    def page(self) -> Page:
        """A row for each number."""
        shown = ("first", "second", "difference", "wilcoxon", "t_test", "effect")
        rows = tuple((d.name, str(d.pairs), *(number(getattr(d, k), 3) for k in shown)) for d in self.differences)
        headings = ("", ">pairs", ">first", ">second", ">second − first", ">Wilcoxon p", ">t test p", ">effect d")
        notes = {
            "run": "paired by run: the last step that both have",
            "step": "paired by step of one training each: steps are not independent, so p says less than it seems; "
            "give several runs of each",
        }
        return Page((notes[self.paired], Table(headings, rows)))


def compare_runs(first: Sequence[Curves], second: Sequence[Curves]) -> RunComparison:
    """Two sides, each of as many runs, in pairs (one seed for both, as a rule); of one run each, step by step.

    Raises CompileError where the sides do not pair, share no number, or scipy is not installed.
    """
    if len(first) != len(second) or not first:
        raise CompileError(f"{len(first)} runs do not pair with {len(second)}", hint="give as many of each")
    by_step = len(first) == 1
    names = [n for n in first[0] if all(n in curves for curves in (*first, *second))]
    found = []
    for name in names:
        pairs = [pair for a, b in zip(first, second, strict=True) for pair in _pairs(a[name], b[name], by_step)]
        pairs = [p for p in pairs if all(map(math.isfinite, p))]
        if len(pairs) >= FEWEST:
            found.append(_difference(name, pairs))
    if not found:
        raise CompileError("there is no number that both sides have at two steps, or in two runs")
    return RunComparison("step" if by_step else "run", tuple(found))


def _pairs(a: Sequence[tuple[int, float]], b: Sequence[tuple[int, float]], by_step: bool) -> list[tuple[float, float]]:
    """The values at steps that both have; of these the last one, unless all are asked for."""
    other = dict(b)
    both = [(value, other[step]) for step, value in a if step in other]
    return both if by_step else both[-1:]


def _difference(name: str, pairs: Sequence[tuple[float, float]]) -> PairedDifference:
    try:
        from scipy import stats
    except ImportError:
        raise CompileError("scipy is not installed", hint="pip install scipy") from None
    a, b = zip(*pairs, strict=True)
    n = len(pairs)
    differences = [y - x for x, y in pairs]
    mean = sum(differences) / n
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    varies = deviation > 1e-12 * max(map(abs, (*a, *b)), default=0.0)
    wilcoxon = float(stats.wilcoxon(differences).pvalue) if any(differences) else math.nan
    t_test = float(stats.ttest_rel(b, a).pvalue) if varies else math.nan
    effect = mean / deviation if varies else math.nan
    return PairedDifference(name, n, sum(a) / n, sum(b) / n, mean, wilcoxon, t_test, effect)
